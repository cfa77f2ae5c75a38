"""How a pipeline samples where a call does not say it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SamplingDefaults:
    """What a call of a pipeline that names neither goes by.

    Attributes:
        steps: sampling steps.
        guidance: the guidance scale, 1 is without; None for what `NullConditions.default_guidance` says.
        guidance_channels: how many of the latents' channels are guided, the first so many; None for all. A property
            of the model, which no call changes.
    """

    steps: int = 12
    guidance: float | None = None
    guidance_channels: int | None = None


def read_defaults(described: dict[str, Any] | None) -> SamplingDefaults:
    """Those that a pipeline's config "sampling" describes; for None, those of the networks that mmdit trains."""
    return SamplingDefaults(**(described or {}))
