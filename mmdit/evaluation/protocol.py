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
    conditions: Literal["rows", "labels", "none"] = "rows"
    """What is asked for: captions and labels of the prompt split, each label of the model in turn, or nothing."""
    frames: int | None = Field(default=None, ge=1)
    """Frames of a clip; null: all that there are. 1 is for images."""
    stride: int = Field(default=1, ge=1)
    """Every so many frames of a clip."""
    size: tuple[int, int] | None = None
    """[height, width] that all clips are scaled to; null: as they are."""
    crop: Literal["centre", "none"] = "centre"
    """What becomes of another shape: cut at the centre, or lost."""
    pixels: Literal["originals", "reconstructions"] = "originals"
    """What a real clip is: the frames that were encoded, or what the codec makes of its latents."""
    seed: int = Field(default=0, ge=0)
    """Of the generated clips, of which real clips are taken, where they begin, and of all subsets."""
    networks: tuple[str, ...] = ("probe",)
    """Networks whose features sets are compared by: probe, i3d, inception, clip, videomae."""
    kid_size: int = Field(default=1000, ge=2)
    """Samples of each subset of KID."""
    neighbours: int = Field(default=3, ge=1)
    """Nearest neighbours of precision and recall."""
    drift_network: str | None = "probe"
    """The network that sees how far frames stray from the first: probe, inception or clip; null: none."""
    attributes: bool = True
    """Whether the embedded probe reads attributes, where they are known of the clips."""
    clip_score: bool = False
    """Whether clips are held against their captions, by the network clip."""
    codec_clips: int = Field(default=64, ge=0)
    """Real clips that PSNR and SSIM of the codec are of."""
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
