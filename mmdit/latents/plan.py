"""What an encoding run is to do: the clips with their ids, and whether it can be done at all."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmdit.clips.decode import ReadRequest
from mmdit.clips.source import SourceClip
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.latents.layout import INDEX, META, QUARANTINE, SHARD_TABLE, SHARDS

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Planned:
    """A clip to be in the store, and the id of its latent: equal ids are equal latents."""

    id: str
    clip: SourceClip
    frames: int
    size: tuple[int, int]
    """(height, width) in pixels."""
    fps: float
    flip: bool = False
    """Mirrored left to right."""
    stride: int | None = None
    """Every so-many-th source frame; None: by time stamp at `fps`."""


def plan_clips(source_folder: Path, clips: Sequence[SourceClip], settings: dict[str, Any]) -> list[Planned]:
    """Each clip with its id: a hash of its file's bytes, its span, and all else that its latent depends on."""
    paths = sorted({clip.path for clip in clips})
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = dict(zip(paths, pool.map(lambda path: _digest(source_folder / path), paths), strict=True))
    plan = []
    for clip in clips:
        facts = json.dumps([digests[clip.path], clip.start, clip.end, settings], sort_keys=True)
        height, width = settings["size"]
        shape = {"frames": settings["frames"], "size": (height, width), "fps": settings["fps"]}
        plan.append(Planned(hashlib.sha256(facts.encode()).hexdigest()[:32], clip, **shape))
    return plan


def _digest(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # reading the clip finds it out too, and counts it
        return f"{path.name}: {error.strerror}"


def left_to_do(plan: Sequence[Planned], rows: dict[str, dict[str, Any]], retry_skipped: bool) -> list[Planned]:
    """What is still to be encoded, each latent once; `rows` are the recorded clips by id."""
    left = {planned.id: planned for planned in reversed(plan)}
    for planned in plan:
        row = rows.get(planned.id)
        if row is not None and not (retry_skipped and row["reason"] is not None):
            left.pop(planned.id, None)
    return [planned for planned in plan if left.get(planned.id) is planned]


def read_request_of(source_folder: Path, clip: SourceClip, settings: dict[str, Any]) -> ReadRequest:
    return ReadRequest(
        path=str(source_folder.absolute() / clip.path),
        frames=settings["frames"], size=tuple(settings["size"]), fps=settings["fps"],
        start=clip.start, end=clip.end, reader=settings["reader"],
    )  # fmt: skip


def check_request(
    codec: Codec, frames: int, size: tuple[int, int], fps: float, dtype: str, least: int
) -> tuple[int, int, int, int]:
    """The shape of one latent."""
    if frames < 1 or min(size) < 1 or not (math.isfinite(fps) and fps > 0):
        raise Refused("an impossible clip", got=f"{frames} frames of {size[0]}x{size[1]} at {fps:g} a second")
    if dtype not in DTYPES:
        raise Refused("an unknown type for latents", got=repr(dtype), expected=f"one of {', '.join(DTYPES)}")
    if least < 1:
        raise Refused("an empty batch or shard", got=least, expected="1 or more clips")
    return codec.channels, *codec.latent_size((frames, *size))


def check_folder(folder: Path) -> None:
    """A store goes into a new folder, an empty one, or a store."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise Refused("no store can be made there", where=folder, got=error.strerror) from None
    if names and not names & {SHARDS, META, INDEX, SHARD_TABLE, QUARANTINE}:
        raise Refused(
            "the folder has other things in it", where=folder, got=", ".join(sorted(names)[:3]),
            expected="a latent store, or an empty or new folder",
        )  # fmt: skip
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refused("no store can be made there", where=folder, got="no permission to write")


def check_space(folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        raise Refused(
            "too little room for the latents", where=folder, got=f"{free / 1e9:.2f} GB free",
            expected=f"{needed / 1e9:.2f} GB", fix="make room, or name another --out",
        )  # fmt: skip
