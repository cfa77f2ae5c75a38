"""Removing the latents that no row of a store uses any more."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from safetensors import safe_open
from torch import Tensor

from mmdit import files
from mmdit.latents.layout import INDEX, QUARANTINE, SHARD_TABLE, SHARDS, shard_paths
from mmdit.latents.shards import Recorded, write_shard
from mmdit.latents.store import LatentStore
from mmdit.latents.tables import as_parquet, shard_table


@dataclass
class Unused:
    """What `prune_store` removes, or would."""

    ids: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    """Where each of them came from."""
    bytes: int = 0
    """Of the latents; the store becomes smaller by about as much."""


def prune_store(folder: Path, dry_run: bool = False) -> Unused:
    """Rewrites the shards that hold latents of no row, without them; `dry_run` only says what would go.

    The rewritten shards get numbers of their own, the tables change over to them one after the other, and the old ones
    go last: at every moment the store is whole, and the same call goes on where one was ended.

    Raises:
        Refused: no whole store, or one that another process works on.
    """
    with files.lock(folder):
        files.sweep(folder)
        files.sweep(folder / SHARDS)
        store = LatentStore.open(folder)
        used = set(zip(store.column("shard").to_pylist(), store.column("id").to_pylist(), strict=True))
        skipped = set(pyarrow.parquet.read_table(folder / QUARANTINE, columns=["id"])["id"].to_pylist())
        unused, changed = Unused(), {}
        for rows_path in sorted((folder / SHARDS).glob("[0-9]*.parquet")):
            number, table = int(rows_path.stem), pyarrow.parquet.read_table(rows_path)
            rows = table.to_pylist()
            kept = [row for row in rows if _stays(row, number, used, skipped)]
            if len(kept) < len(rows):
                changed[number] = kept
                _tell(unused, folder, number, rows, kept)
        if changed and not dry_run:
            _change(folder, store, changed)
        return unused


def _stays(row: dict[str, Any], number: int, used: set[tuple[int, str]], skipped: set[str]) -> bool:
    return (number, row["id"]) in used if row["reason"] is None else row["id"] in skipped


def _tell(unused: Unused, folder: Path, number: int, rows: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
    ids = {row["id"] for row in kept}
    with safe_open(shard_paths(folder, number)[0], framework="pt") as tensors:
        for row in rows:
            if row["reason"] is None and row["id"] not in ids:
                unused.ids.append(row["id"])
                unused.sources.append(row["source"])
                unused.bytes += sum(tensors.get_tensor(f"{row['id']}.{part}").nbytes for part in ("mean", "std"))


def _change(folder: Path, store: LatentStore, changed: dict[int, list[dict[str, Any]]]) -> None:
    recorded = Recorded(shards=dict(store.shards))
    for path in (folder / SHARDS).glob("[0-9]*.parquet"):  # what an ended call left is there as well
        recorded.shards.setdefault(int(path.stem), _facts(path))
    number_of = {}
    for old, rows in changed.items():
        if rows:
            number_of[old] = _rewrite(folder, store, recorded, old, rows)
    # Both the old and the new shards are known until the index has changed over.
    files.write_bytes(folder / SHARD_TABLE, shard_table(recorded))
    table = pyarrow.parquet.read_table(folder / INDEX)
    numbers = [number_of.get(number, number) for number in table["shard"].to_pylist()]
    place = table.column_names.index("shard")
    table = table.set_column(place, table.schema.field("shard"), pyarrow.array(numbers, pyarrow.int32()))
    files.write_bytes(folder / INDEX, as_parquet(table))
    for number in changed:
        del recorded.shards[number]
    files.write_bytes(folder / SHARD_TABLE, shard_table(recorded))
    for number in changed:
        for path in reversed(shard_paths(folder, number)):
            path.unlink()


def _rewrite(folder: Path, store: LatentStore, recorded: Recorded, old: int, rows: list[dict[str, Any]]) -> int:
    number = next(recorded.free_numbers())
    tensors: dict[str, Tensor] = {}
    with safe_open(shard_paths(folder, old)[0], framework="pt") as file:
        for row in rows:
            if row["reason"] is None:
                tensors |= {f"{row['id']}.{part}": file.get_tensor(f"{row['id']}.{part}") for part in ("mean", "std")}
    recorded.shards[number] = write_shard(folder, number, store.meta["settings"], rows, tensors)
    return number


def _facts(rows_path: Path) -> dict[str, Any]:
    return json.loads(pyarrow.parquet.read_schema(rows_path).metadata[b"shard"])
