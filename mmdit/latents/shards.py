"""The shards of a latent store: writing them, and what is recorded in them. The files: `mmdit.latents.store`."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import safetensors.torch
from torch import Tensor

from mmdit import files
from mmdit.errors import Refused
from mmdit.latents.layout import FORMAT, SHARDS, check_format, read_meta, shard_paths

_FLOATS = pyarrow.list_(pyarrow.float64())
CLIP_COLUMNS = [
    ("start", pyarrow.float64()), ("end", pyarrow.float64()), ("fps", pyarrow.float64()),
    ("frames", pyarrow.int32()), ("height", pyarrow.int32()), ("width", pyarrow.int32()),
    ("flip", pyarrow.bool_()), ("stride", pyarrow.int32()), ("speed", pyarrow.float64()),
    ("latent", pyarrow.list_(pyarrow.int32())),
]  # fmt: skip
SOURCE_COLUMNS = [
    ("source_frames", pyarrow.int64()), ("source_fps", pyarrow.float64()),
    ("source_height", pyarrow.int32()), ("source_width", pyarrow.int32()), ("reader", pyarrow.string()),
]  # fmt: skip
# What a shard knows of each clip. A skipped clip has a reason and nothing else. `total` and `square` are sums over a
# channel of z and of z^2, where z is drawn from the posterior: E z = mean, E z^2 = mean^2 + std^2.
SHARD_ROWS = pyarrow.schema(
    [
        ("id", pyarrow.string()), ("source", pyarrow.string()), ("reason", pyarrow.string()),
        *CLIP_COLUMNS, ("psnr", pyarrow.float32()), *SOURCE_COLUMNS, ("total", _FLOATS), ("square", _FLOATS),
    ]
)  # fmt: skip


@dataclass
class Recorded:
    """What the whole shards of a folder hold."""

    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By id; each with the key "shard"."""
    shards: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By number: name, bytes, sha256, clips."""

    def free_numbers(self) -> Iterator[int]:
        """The numbers that no shard has, rising."""
        return (number for number in count() if number not in self.shards)

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
        Refused: the store was made with other settings, or has another format.
    """
    recorded = Recorded()
    if (meta := read_meta(folder)) is not None:
        _check_current(meta["format"], folder)
        _check_settings(meta["settings"], settings, folder)
    for rows_path in sorted((folder / SHARDS).glob("[0-9]*.parquet")):
        table = pyarrow.parquet.read_table(rows_path)
        about = json.loads(table.schema.metadata[b"mmdit"])
        facts = json.loads(table.schema.metadata[b"shard"])
        check_format(about["format"], rows_path)
        _check_current(about["format"], folder)
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


def _check_current(version: int, folder: Path) -> None:
    if version != FORMAT:
        raise Refused(
            "a store of an older format can be read, not added to", where=folder, got=f"format {version}",
            expected=f"format {FORMAT}", fix="name another --out",
        )  # fmt: skip


def _check_settings(got: dict[str, Any], expected: dict[str, Any], folder: Path) -> None:
    for name, value in expected.items():
        if got.get(name) != value:
            raise Refused(
                f"this store was made with another {name}", where=folder, got=f"{name} {value}",
                expected=f"{name} {got.get(name)}", fix="name another --out, or use the store's setting",
            )  # fmt: skip
