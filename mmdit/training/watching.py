"""The keys of a recipe that say how a run is watched: clips sampled while it trains, and trackers."""

import difflib
from pathlib import Path
from typing import Annotated

from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from pydantic import AfterValidator, Field

from mmdit.config import Config
from mmdit.errors import Refused


class SampleConfig(Config):
    """Clips that are sampled from the averaged weights now and then, into samples/ of the run."""

    every: int = Field(500, ge=1)
    """Steps between samples; some are always made at the end."""
    prompts: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """What they are to show; null with labels null takes captions and labels of the validation clips."""
    labels: Annotated[tuple[int | str, ...], Field(min_length=1)] | None = None
    """Names or numbers of labels, paired with the prompts; null with prompts set is no label."""
    count: int | None = Field(None, ge=1)
    """Number of clips, which take prompts and labels in turn; null for as many as there are of these, else 4."""
    steps: int = Field(12, ge=1)
    """Sampling steps."""
    guidance: float | None = Field(None, ge=0.0)
    """Guidance scale; 1 is without. Null for 2, or 1 where no condition is ever dropped, so that there is none."""


def samples_folder(run_folder: Path, step: int) -> Path:
    return run_folder / "samples" / f"step-{step:07d}"


def _known_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            nearest = difflib.get_close_matches(name, LOGGER_TYPE_TO_CLASS, n=1, cutoff=0.0)[0]
            expected = f"of {', '.join(LOGGER_TYPE_TO_CLASS)}"
            raise Refused("unknown tracker", got=name, expected=expected, fix=f"did you mean {nearest}?")
    return tuple(dict.fromkeys(names))


Trackers = Annotated[tuple[str, ...], AfterValidator(_known_trackers)]
