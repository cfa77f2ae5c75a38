"""A small store of made latents, in several groups and shards."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from mmdit.clips.source import SourceClip
from mmdit.latents.plan import Planned
from mmdit.latents.shards import Recorded, write_shard
from mmdit.latents.tables import write_tables

SHAPE = (2, 3, 4, 5)
SETTINGS = {"codec": "made", "dtype": "float32", "tiling": None}
ABOUT = {"codec": {"name": "made", "fingerprint": "made"}, "labels": ["a", "b"]}


def id_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()[:32]


def latent(number: int, shape: tuple[int, ...] = SHAPE) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(shape, generator=generator), torch.rand(shape, generator=generator)


def clip_of(number: int) -> SourceClip:
    split = "test" if number >= 4 else "train"
    return SourceClip(f"{number}.mp4", f"clip {number}", "ab"[number % 2], split, {"colour": "red"})


def write_store(
    folder: Path, shapes: dict[int, tuple[int, int, int, int]] | None = None, left_out: Collection[int] = ()
) -> Path:
    """Six clips in three shards, the last two in split "test"; `shapes` are of latents that are not `SHAPE`. Those
    `left_out` have latents but no row."""
    recorded, plan = Recorded(), []
    for shard in range(3):
        rows: list[dict[str, Any]] = []
        tensors = {}
        for number in (2 * shard, 2 * shard + 1):
            id, shape = id_of(number), (shapes or {}).get(number, SHAPE)
            _, frames, height, width = shape
            size = (2 * height, 2 * width)
            if number not in left_out:
                plan.append(Planned(id, clip_of(number), frames, size, fps=8.0))
            mean, std = tensors[f"{id}.mean"], tensors[f"{id}.std"] = latent(number, shape)
            sums = {"total": mean.sum((1, 2, 3)).tolist(), "square": (mean**2 + std**2).sum((1, 2, 3)).tolist()}
            row = {"id": id, "source": f"{number}.mp4", "reason": None, "latent": list(shape), "speed": 1.0}
            same = {"frames": frames, "height": size[0], "width": size[1], "fps": 8.0, "flip": False, "stride": None}
            rows.append(row | same | sums)
        recorded.add(shard, rows, write_shard(folder, shard, SETTINGS, rows, tensors))
    write_tables(folder, plan, recorded, SETTINGS, ABOUT)
    return folder
