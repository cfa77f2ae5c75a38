"""Protocols: everything that a figure depends on beside the model and the data, under a name, in a file."""

import importlib.resources
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from mmdit.config import Config, apply_overrides, parse_config, read_yaml
from mmdit.errors import Refused


class Protocol(Config):
    """How clips are made, and which real ones they are compared with."""

    samples: int = Field(ge=2)
    """Clips that are generated, or taken of a folder of them."""
    real: int | None = Field(default=None, ge=2)
    """Real clips that they are compared with; null: all of the split."""
    real_split: str = "train"
    """The split of the store that the real clips are of."""
    prompt_split: str = "train"
    """The split whose captions and labels the generated clips follow, clip after clip, then again."""
    given_split: str = "held_out"
    """The split whose clips are given frames of (`--given`)."""
    pixels: Literal["originals", "reconstructions"] = "originals"
    """What a real clip is: the frames that were encoded, or what the codec makes of its latents."""
    seed: int = Field(default=0, ge=0)
    """Of the generated clips, and of which real clips are taken."""
    steps: int = Field(default=12, ge=1)
    """Sampling steps."""
    sampler: str | None = None
    """The sampler's name; null: the model's own."""
    guidance: float = Field(default=2.0, ge=0)
    """Guidance scale; 1 is without."""


def load_protocol(name: str, overrides: Sequence[str] = ()) -> Protocol:
    """A protocol of configs/protocols/ by name, or a YAML file; `overrides` are key=value.

    Raises:
        Refused: no such protocol, an unknown key, or a value that does not fit.
    """
    path = Path(name)
    folder = Path(str(importlib.resources.files("mmdit.configs"))) / "protocols"
    if not path.is_file() and path.parent == Path("."):
        path = folder / f"{name.removesuffix('.yaml')}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise Refused("no such protocol", got=name, expected=f"a YAML file, or one of {known}")
    values = read_yaml(path)
    apply_overrides(values, overrides)
    return parse_config(Protocol, values, where=name)
