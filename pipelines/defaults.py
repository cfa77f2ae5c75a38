"""How a pipeline samples where a call does not say it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SamplingDefaults:
    """What a call of a pipeline that names neither goes by.

    Attributes:
        steps: sampling steps.
        guidance: the guidance scale; 1 is without.
        guidance_channels: how many of the latents' channels are guided, the first so many; None for all. A property
            of the model, which no call changes.
    """

    steps: int = 12
    guidance: float = 2.0
    guidance_channels: int | None = None


def read_defaults(described: dict[str, Any] | None) -> SamplingDefaults:
    """Those that a pipeline's config "sampling" describes; mmdit's own for None."""
    return SamplingDefaults(**(described or {}))
