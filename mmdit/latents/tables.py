"""The tables of a latent store, made of what its shards record: index, shards, quarantine, and store.json."""

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import torch

from mmdit import files
from mmdit.latents.layout import FORMAT, INDEX, META, QUARANTINE, SHARD_TABLE, read_meta
from mmdit.latents.plan import Planned, row_of
from mmdit.latents.rows import ROW_GROUP
from mmdit.latents.shards import CLIP_COLUMNS, SOURCE_COLUMNS, Recorded

INDEX_ROWS = pyarrow.schema(
    [
        ("id", pyarrow.string()), ("source", pyarrow.string()), *CLIP_COLUMNS,
        ("caption", pyarrow.string()), ("label", pyarrow.string()), ("split", pyarrow.string()),
        ("shard", pyarrow.int32()), ("psnr", pyarrow.float32()), *SOURCE_COLUMNS,
    ]
)  # fmt: skip
SHARD_TABLE_ROWS = pyarrow.schema(
    [
        ("number", pyarrow.int32()), ("name", pyarrow.string()), ("bytes", pyarrow.int64()),
        ("sha256", pyarrow.string()), ("clips", pyarrow.int32()),
    ]
)  # fmt: skip
QUARANTINE_ROWS = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("id", "source", "split", "reason")]
    + [(name, pyarrow.float64()) for name in ("start", "end")]
)
Kept = tuple[Planned, dict[str, Any]]
"""A clip that is in the store, and what its shard records of it."""


def write_tables(
    folder: Path, plan: Sequence[Planned], recorded: Recorded, settings: dict[str, Any], about: dict[str, Any]
) -> dict[str, Any]:
    """Writes index, shards, quarantine and store.json, in this order; nothing when they say the same already.

    The rows are the planned clips by split and shape, and in their order within; what their captions and labels are
    comes from the plan, so that a changed caption costs no encoding. `about` is added to store.json: the label names
    ("labels"), in the order of their numbers, crop and codec.
    """
    rows = [(planned, row_of(planned, recorded.rows)) for planned in plan]
    kept = in_order(pair for pair in rows if pair[1]["reason"] is None)
    skipped = [pair for pair in rows if pair[1]["reason"] is not None]
    tables = {
        INDEX: as_parquet(index_table(kept)),
        SHARD_TABLE: shard_table(recorded),
        QUARANTINE: as_parquet(pyarrow.Table.from_pylist(list(map(_quarantined, skipped)), schema=QUARANTINE_ROWS)),
    }
    mean, std = _statistics([row for _, row in kept])
    meta = about | {
        "format": FORMAT,
        "settings": settings,
        **about_clips(kept, len(skipped)),
        "channel_mean": mean,
        "channel_std": std,
    }
    if not (read_meta(folder) == meta and all(_same(folder / name, data) for name, data in tables.items())):
        (folder / META).unlink(missing_ok=True)  # until it is written again this is no whole store
        for name, data in tables.items():
            files.write_bytes(folder / name, data)
        files.write_json(folder / META, meta)
    return meta


def in_order(kept: Iterable[Kept]) -> list[Kept]:
    """The clips by split and shape, and in their order within."""
    return sorted(kept, key=_group_of)


def about_clips(kept: Sequence[Kept], skipped: int) -> dict[str, Any]:
    """What store.json says of the clips, in order: "clip", "groups" and "counts"."""
    splits = dict(sorted(Counter(planned.clip.split for planned, _ in kept).items()))
    counts = {"clips": len(kept), "skipped": skipped, "splits": splits}
    return {"clip": _one_kind(kept), "groups": _groups(kept), "counts": counts}


def as_parquet(table: pyarrow.Table) -> bytes:
    """The bytes of a table's file, with a checksum on each page."""
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, row_group_size=ROW_GROUP, write_page_checksum=True)
    return buffer.getvalue()


def shard_table(recorded: Recorded) -> bytes:
    """shards.parquet: a row a shard, by number."""
    rows = [{"number": number} | facts for number, facts in sorted(recorded.shards.items())]
    return as_parquet(pyarrow.Table.from_pylist(rows, schema=SHARD_TABLE_ROWS))


def _group_of(pair: Kept) -> tuple[str, int, int, int]:
    planned, row = pair
    return planned.clip.split, row["frames"], row["height"], row["width"]


def _groups(kept: Sequence[Kept]) -> list[dict[str, Any]]:
    groups: list[dict[str, Any]] = []
    for (split, frames, height, width), pairs in groupby(kept, _group_of):
        members = list(pairs)
        same = {"split": split, "frames": frames, "height": height, "width": width, "latent": members[0][1]["latent"]}
        groups.append(same | {"first": sum(group["count"] for group in groups), "count": len(members)})
    return groups


def _one_kind(kept: Sequence[Kept]) -> dict[str, Any] | None:
    """Frames, size and rate where all clips have the same."""
    kinds = {(row["frames"], row["height"], row["width"], row["fps"]) for _, row in kept}
    if len(kinds) != 1:
        return None
    frames, height, width, fps = kinds.pop()
    return {"frames": frames, "size": [height, width], "fps": fps}


def index_table(kept: Sequence[Kept]) -> pyarrow.Table:
    """index.parquet: a row a clip. What is known of each comes from its shard, caption and label from the plan."""
    names = sorted({name for planned, _ in kept for name in planned.clip.attributes})
    columns: dict[str, str] = {}
    for name in names:  # an attribute of the name of one of our columns, or of another's, is kept beside it
        columns[name] = name
        while columns[name] in INDEX_ROWS.names or list(columns.values()).count(columns[name]) > 1:
            columns[name] = f"attribute.{columns[name]}"
    rows = []
    for planned, row in kept:
        clip = planned.clip
        own = {"source": clip.path, "caption": clip.caption, "label": clip.label, "split": clip.split}
        rows.append(row | own | {columns[name]: value for name, value in clip.attributes.items()})
    schema = INDEX_ROWS
    for column in columns.values():
        schema = schema.append(pyarrow.field(column, pyarrow.string()))
    return pyarrow.Table.from_pylist(rows, schema=schema)


def _quarantined(pair: Kept) -> dict[str, Any]:
    planned, row = pair
    clip = planned.clip
    about = {"id": planned.id, "source": clip.path, "split": clip.split, "start": clip.start, "end": clip.end}
    return about | {"reason": row["reason"]}


def _statistics(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over drawn latents."""
    total = torch.tensor([row["total"] for row in rows], dtype=torch.float64).sum(0)
    square = torch.tensor([row["square"] for row in rows], dtype=torch.float64).sum(0)
    count = sum(frames * height * width for _, frames, height, width in (row["latent"] for row in rows))
    mean = total / count
    return mean.tolist(), (square / count - mean**2).clamp(min=0).sqrt().tolist()


def _same(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data
