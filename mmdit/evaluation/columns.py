"""What is measured of each clip on its own: columns of numbers, a row a clip, which figures are then made of.

Shapes: b clips, uint8 (b, 3, f, h, w).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mmdit import files, seeds
from mmdit.evaluation.clip_score import ClipScore
from mmdit.evaluation.clip_sets import as_floats
from mmdit.evaluation.features import Features
from mmdit.evaluation.over_time import drift, flicker, ssim
from mmdit.evaluation.probe import Probe
from mmdit.evaluation.score import psnr
from mmdit.latents.cache import ShardCache
from mmdit.latents.codec import Codec

TOGETHER = 32
"""Clips are measured in parts of so many, whatever the batch and the number of processes: sums then round alike."""
FORMAT = 1
UNFINISHED = "unfinished"

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Column:
    """One thing that is measured. `fingerprint` is of all that it depends on beside the clips.

    measure: clips (b, 3, f, h, w) and their rows to numbers (b, ...).
    """

    name: str
    fingerprint: str
    measure: Callable[[Tensor, Rows], Tensor]


def feature_column(network: Features) -> Column:
    return Column(f"features.{network.name}", network.fingerprint, lambda clips, rows: network(clips))


def reading_column(probe: Probe, fingerprint: str) -> Column:
    """The number of the name that is read, attribute by attribute in the probe's order; -1 for unclear: (b, k)."""

    def measure(clips: Tensor, rows: Rows) -> Tensor:
        read = probe.read(clips)
        numbers = [
            [names.index(value) if value in names else -1 for value in read[key]]
            for key, names in probe.config.names.items()
        ]
        return torch.tensor(numbers, dtype=torch.int32).T

    return Column("attributes", fingerprint, measure)


def read_names(probe: Probe, column: Tensor) -> dict[str, list[str]]:
    """attribute -> a name a clip, of the numbers of `reading_column`."""
    return {
        key: [names[number] if number >= 0 else "unclear" for number in column[:, place].tolist()]
        for place, (key, names) in enumerate(probe.config.names.items())
    }


def flicker_column() -> Column:
    return Column("flicker", "1", lambda clips, rows: flicker(clips))


def drift_column(network: Features) -> Column:
    """Distance of each later frame from the first, by a network that sees frames as stills: (b, f - 1)."""

    def measure(clips: Tensor, rows: Rows) -> Tensor:
        if network.of_frames:
            return drift(network(clips))
        b, _, f = clips.shape[:3]
        stills = clips.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # (b f, 3, 1, h, w)
        return drift(network(stills).unflatten(0, (b, f)))

    return Column(f"drift.{network.name}", network.fingerprint, measure)


def clip_score_column(score: ClipScore) -> Column:
    def measure(clips: Tensor, rows: Rows) -> Tensor:
        return score(score.clip(clips), [row["caption"] for row in rows])

    return Column("clip_score", score.clip.fingerprint, measure)


def codec_column(codec: Codec) -> Column:
    """PSNR in dB and SSIM of what the codec makes of each clip: (b, 2); SSIM is nan for frames below 11x11."""

    def measure(clips: Tensor, rows: Rows) -> Tensor:
        originals = as_floats(clips)
        again = torch.cat([codec.decode(codec.encode(clip[None]).mean).cpu() for clip in originals])
        small = min(clips.shape[-2:]) < 11
        alike = torch.full((len(clips),), float("nan")) if small else ssim(originals, again)
        return torch.stack([psnr(originals, again), alike], 1)

    return Column("codec", codec.fingerprint, measure)


def cache_folder() -> Path:
    """evaluation/ in the folder of `mmdit.latents.cache`: $MMDIT_CACHE, or mmdit/ in the user's cache folder."""
    return ShardCache().folder / "evaluation"


class ColumnCache:
    """Columns of sets of clips on disk, each by a hash of what it is a function of: those of real clips, and until an
    evaluation is done, parts of those of all clips.

    folder: where they lie; None: nothing is kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._asked: set[str] = set()

    def get(self, clips: str, column: Column, part: range | None = None) -> Tensor | None:
        """The column of the set with this fingerprint, or a part of it; None where it is not here, or damaged."""
        self._asked.add(clips)
        path = self._path(clips, column, part)
        if path is None or not path.is_file():
            return None
        try:
            return load_file(path)["column"]
        except (OSError, SafetensorError, KeyError):
            return None

    def put(self, clips: str, column: Column, values: Tensor, part: range | None = None) -> None:
        path = self._path(clips, column, part)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_safetensors(path, {"column": values})

    def drop_parts(self) -> None:
        """Removes the parts of all sets that were asked for: what they were kept for is done."""
        if self._folder is None:
            return
        for clips in self._asked:
            for path in self._folder.glob(f"{_unfinished(clips)}-*.safetensors"):
                path.unlink(missing_ok=True)

    def _path(self, clips: str, column: Column, part: range | None) -> Path | None:
        if self._folder is None:
            return None
        name = f"{column.name}-{seeds.seed_at(FORMAT, clips, column.name, column.fingerprint):016x}"
        if part is not None:
            name = f"{_unfinished(clips)}-{name}-{part.start}-{part.stop}"
        return self._folder / f"{name}.safetensors"


def _unfinished(clips: str) -> str:
    return f"{UNFINISHED}-{seeds.seed_at(FORMAT, clips):016x}"
