"""Writing the latent store: shards, and the tables made of them. What the files are: `mmdit.latents.store`."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import safetensors.torch
import torch
from torch import Tensor

from mmdit import files
from mmdit.errors import Refused
from mmdit.latents.plan import Planned
from mmdit.latents.store import FORMAT, INDEX, META, QUARANTINE, SHARDS, check_format, read_meta, shard_paths

_FLOATS = pyarrow.list_(pyarrow.float64())
# What a shard knows of each clip. A skipped clip has a reason and nothing else. `total` and `square` are sums over a
# channel of z and of z^2, where z is drawn from the posterior: E z = mean, E z^2 = mean^2 + std^2.
SHARD_ROWS = pyarrow.schema(
    [
        ("id", pyarrow.string()), ("source", pyarrow.string()), ("reason", pyarrow.string()),
        ("start", pyarrow.float64()), ("end", pyarrow.float64()),
        ("source_frames", pyarrow.int64()), ("source_fps", pyarrow.float64()),
        ("source_height", pyarrow.int32()), ("source_width", pyarrow.int32()), ("reader", pyarrow.string()),
        ("psnr", pyarrow.float32()), ("total", _FLOATS), ("square", _FLOATS),
    ]
)  # fmt: skip
INDEX_ROWS = pyarrow.schema(
    [
        ("id", pyarrow.string()), ("source", pyarrow.string()),
        ("start", pyarrow.float64()), ("end", pyarrow.float64()),
        ("fps", pyarrow.float64()), ("frames", pyarrow.int32()),
        ("height", pyarrow.int32()), ("width", pyarrow.int32()),
        ("latent", pyarrow.list_(pyarrow.int32())), ("caption", pyarrow.string()), ("label", pyarrow.string()),
        ("split", pyarrow.string()), ("shard", pyarrow.int32()), ("psnr", pyarrow.float32()),
        ("source_frames", pyarrow.int64()), ("source_fps", pyarrow.float64()),
        ("source_height", pyarrow.int32()), ("source_width", pyarrow.int32()), ("reader", pyarrow.string()),
    ]
)  # fmt: skip
QUARANTINE_ROWS = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("id", "source", "split", "reason")]
    + [(name, pyarrow.float64()) for name in ("start", "end")]
)


@dataclass
class Recorded:
    """What the whole shards of a folder hold."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By id; each with the key "shard"."""
    shards: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By number: name, bytes, sha256, clips."""

    def next_number(self) -> int:
        return next(number for number in range(len(self.shards) + 1) if number not in self.shards)

    def add(self, number: int, rows: Iterable[dict[str, Any]], facts: dict[str, Any]) -> None:
        self.shards[number] = facts
        for row in rows:
            before = self.rows.get(row["id"])
            if before is None or before["reason"] is not None:  # skipped at first, read at another try
                self.rows[row["id"]] = row | {"shard": number}


def write_shard(
    folder: Path, number: int, settings: dict[str, Any], rows: list[dict[str, Any]], latents: dict[str, Tensor]
) -> dict[str, Any]:
    """Writes both files of a shard, the rows last, and returns its facts."""
    tensors_path, rows_path = shard_paths(folder, number)
    about = {"mmdit": json.dumps({"format": FORMAT, "settings": settings}, sort_keys=True)}
    data = safetensors.torch.save(latents, metadata=about)
    facts = {
        "name": tensors_path.name,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),  # of what is meant to be written: a bad disk is found out
        "clips": len(latents) // 2,
    }
    files.write_bytes(tensors_path, data)
    table = pyarrow.Table.from_pylist(rows, schema=SHARD_ROWS)
    files.write_parquet(rows_path, table.replace_schema_metadata(about | {"shard": json.dumps(facts, sort_keys=True)}))
    return facts


def read_shards(folder: Path, settings: dict[str, Any]) -> Recorded:
    """What is there already. Latents without their rows, and shards cut short, do not count: they are removed.

    Raises:
        Refused: the store was made with other settings, or by a newer mmdit.
    """
    recorded = Recorded()
    if (meta := read_meta(folder)) is not None:
        _check_settings(meta["settings"], settings, folder)
    for rows_path in sorted((folder / SHARDS).glob("[0-9]*.parquet")):
        table = pyarrow.parquet.read_table(rows_path)
        about = json.loads(table.schema.metadata[b"mmdit"])
        facts = json.loads(table.schema.metadata[b"shard"])
        check_format(about["format"], rows_path)
        _check_settings(about["settings"], settings, folder)
        tensors_path = rows_path.with_suffix(".safetensors")
        if tensors_path.is_file() and tensors_path.stat().st_size == facts["bytes"]:
            recorded.add(int(rows_path.stem), table.to_pylist(), facts)
        else:
            rows_path.unlink()
    for tensors_path in (folder / SHARDS).glob("[0-9]*.safetensors"):
        if not tensors_path.with_suffix(".parquet").is_file():
            tensors_path.unlink()
    return recorded


def _check_settings(got: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    for name, value in expected.items():
        if got.get(name) != value:
            raise Refused(
                f"this store was made with another {name}", where=folder, got=f"{name} {value}",
                expected=f"{name} {got.get(name)}", fix="name another --out, or use the store's setting",
            )  # fmt: skip


def write_tables(
    folder: Path,
    plan: Sequence[Planned],
    recorded: Recorded,
    settings: dict[str, Any],
    about: dict[str, Any],
) -> dict[str, Any]:
    """Writes index.parquet, quarantine.parquet and store.json, in this order; nothing when they say the same already.

    The rows are the planned clips in their order; what their captions and labels are comes from the plan, so that a
    changed caption costs no encoding. `about` is added to store.json.
    """
    kept: list[tuple[Planned, dict[str, Any]]] = []
    skipped: list[tuple[Planned, dict[str, Any]]] = []
    for planned in plan:
        row = recorded.rows[planned.id]
        (skipped if row["reason"] is not None else kept).append((planned, row))
    index = _index(kept, settings, about["latent"]["shape"])
    quarantine = pyarrow.Table.from_pylist(
        [
            {"id": planned.id, "source": clip.path, "split": clip.split, "start": clip.start, "end": clip.end}
            | {"reason": row["reason"]}
            for planned, row in skipped
            for clip in [planned.clip]
        ],
        schema=QUARANTINE_ROWS,
    )
    mean, std = _statistics([row for _, row in kept], about["latent"]["shape"])
    meta = about | {
        "format": FORMAT,
        "settings": settings,
        "counts": {
            "clips": len(kept),
            "skipped": len(skipped),
            "splits": dict(sorted(Counter(planned.clip.split for planned, _ in kept).items())),
        },
        "channel_mean": mean,
        "channel_std": std,
        "shards": [recorded.shards[number] for number in sorted(recorded.shards)],
    }
    if not (read_meta(folder) == meta and _same(folder / INDEX, index) and _same(folder / QUARANTINE, quarantine)):
        (folder / META).unlink(missing_ok=True)  # until it is written again this is no whole store
        files.write_parquet(folder / INDEX, index)
        files.write_parquet(folder / QUARANTINE, quarantine)
        files.write_json(folder / META, meta)
    return meta


def _index(kept: list[tuple[Planned, dict[str, Any]]], settings: dict[str, Any], shape: list[int]) -> pyarrow.Table:
    height, width = settings["size"]
    same = {"fps": settings["fps"], "frames": settings["frames"], "height": height, "width": width, "latent": shape}
    names = sorted({name for planned, _ in kept for name in planned.clip.attributes})
    # An attribute of the name of one of our columns is kept beside it.
    columns = {name: f"attribute.{name}" if name in INDEX_ROWS.names else name for name in names}
    rows = []
    for planned, row in kept:
        clip = planned.clip
        own = {"source": clip.path, "caption": clip.caption, "label": clip.label, "split": clip.split}
        rows.append(row | same | own | {columns[name]: value for name, value in clip.attributes.items()})
    schema = INDEX_ROWS
    for column in columns.values():
        schema = schema.append(pyarrow.field(column, pyarrow.string()))
    return pyarrow.Table.from_pylist(rows, schema=schema)


def _statistics(rows: list[dict[str, Any]], shape: list[int]) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel over drawn latents."""
    total = torch.tensor([row["total"] for row in rows], dtype=torch.float64).sum(0)
    square = torch.tensor([row["square"] for row in rows], dtype=torch.float64).sum(0)
    count = len(rows) * shape[1] * shape[2] * shape[3]
    mean = total / count
    return mean.tolist(), (square / count - mean**2).clamp(min=0).sqrt().tolist()


def _same(path: Path, table: pyarrow.Table) -> bool:
    return path.is_file() and pyarrow.parquet.read_table(path).equals(table)
