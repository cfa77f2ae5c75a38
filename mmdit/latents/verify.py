"""Reading a whole store to find what is damaged in it, and making room for that to be encoded again."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
from safetensors import safe_open

from mmdit import files
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.latents.layout import INDEX, META, QUARANTINE, SHARD_TABLE, SHARDS, shard_paths
from mmdit.latents.rows import Rows
from mmdit.latents.store import LatentStore

Progress = Callable[[int, int], None]
"""Told after each shard: shards looked at, shards in all."""


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong. `shard` is the number of the shard that holds it; None: a table does."""

    where: str
    what: str
    shard: int | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


@dataclass(frozen=True)
class VerifyReport:
    """What `verify_store` looked at, and what it found."""

    clips: int
    shards: int
    bytes: int
    damages: list[Damage]

    @property
    def shards_damaged(self) -> list[int]:
        return sorted({damage.shard for damage in self.damages if damage.shard is not None})


def verify_store(folder: Path, progress: Progress | None = None) -> VerifyReport:
    """Reads every byte of a store: sizes and hashes of its shards, counts, groups, labels, and that every latent is
    there, finite, and of the shape that its row says.

    Raises:
        Refused: it is no whole store, or its store.json cannot be read.
    """
    store = LatentStore.open(folder)
    damages = list(_tables(folder, store))
    if damages:  # what the shards are to hold is not known then
        return VerifyReport(len(store), 0, 0, damages)
    by_shard: defaultdict[int, list[tuple[int, str, str, list[int]]]] = defaultdict(list)
    columns = (store.column(name).to_pylist() for name in ("shard", "id", "source", "latent"))
    for row, (shard, *known) in enumerate(zip(*columns, strict=True)):
        by_shard[shard].append((row, *known))
    sizes = 0
    for done, (number, facts) in enumerate(store.shards.items(), start=1):
        damages += _shard(folder, number, facts, by_shard[number], store.meta["settings"]["dtype"])
        sizes += facts["bytes"]
        if progress is not None:
            progress(done, len(store.shards))
    return VerifyReport(len(store), len(store.shards), sizes, damages)


def check_codec(store: LatentStore, codec: Codec) -> None:
    """Refuses a codec that did not make the latents of this store."""
    made_by = store.meta["codec"]
    if codec.fingerprint != made_by["fingerprint"]:
        raise Refused(
            "the latents are of another codec", where=store.place, got=f"codec fingerprint {codec.fingerprint}",
            expected=f"{made_by['fingerprint']} ({made_by['name'] or 'no name'})", fix="load the codec that made them",
        )  # fmt: skip


def remove_damaged(folder: Path, report: VerifyReport) -> int:
    """Takes the damaged shards, and store.json, out of a store: the command that made it then makes what is missing.
    Returns the number of shards taken out."""
    with files.lock(folder):
        (folder / META).unlink(missing_ok=True)  # first, so that there is no store with a shard missing
        for number in report.shards_damaged:
            for path in reversed(shard_paths(folder, number)):
                path.unlink(missing_ok=True)
    return len(report.shards_damaged)


def _tables(folder: Path, store: LatentStore) -> Iterator[Damage]:
    for name in (INDEX, SHARD_TABLE, QUARANTINE) if store.meta["format"] > 1 else (QUARANTINE,):
        path = str(folder / name)
        try:
            rows = Rows(lambda: path, path)  # noqa: B023
            for column in rows.names:
                rows.column(column)
        except Refused as error:
            yield Damage(path, f"cannot be read: {error}")
            return
        if name == QUARANTINE and len(rows) != store.meta["counts"]["skipped"]:
            yield Damage(path, f"{len(rows)} rows, {store.meta['counts']['skipped']} in {META}")
    yield from _index(folder / INDEX, store)


def _index(path: Path, store: LatentStore) -> Iterator[Damage]:
    try:
        store.label_numbers()
    except Refused as error:
        yield Damage(str(path), str(error))
    for group in store.groups:
        for name in ("split", "frames", "height", "width"):
            values = pyarrow.compute.unique(store.column(name, group.first, group.count)).to_pylist()
            if values != [getattr(group, name)]:
                yield Damage(str(path), f"{name} {values} in rows {group.first} on, {getattr(group, name)} in {META}")
    unknown = set(pyarrow.compute.unique(store.column("shard")).to_pylist()) - store.shards.keys()
    if unknown:
        yield Damage(str(path), f"shards {sorted(map(str, unknown))} are not in {SHARD_TABLE}")
    keys = pyarrow.table({name: store.column(name) for name in ("id", "source")})
    keys = keys.append_column("row", pyarrow.array(range(len(keys))))
    twice = keys.group_by(["id", "source"]).aggregate([("row", "min"), ("row", "max")])
    for row in twice.filter(pyarrow.compute.less(twice["row_min"], twice["row_max"])).to_pylist():
        yield Damage(str(path), f"rows {row['row_min']} and {row['row_max']} are one clip twice, of {row['source']}")


def _shard(
    folder: Path, number: int, facts: dict[str, Any], rows: list[tuple[int, str, str, list[int]]], dtype: str
) -> Iterator[Damage]:
    tensors_path, rows_path = shard_paths(folder, number)
    name = f"{SHARDS}/{tensors_path.name}"
    try:
        about = pyarrow.parquet.read_schema(rows_path).metadata[b"shard"]
        if json.loads(about) != {key: facts[key] for key in json.loads(about)}:
            yield Damage(f"{SHARDS}/{rows_path.name}", f"does not say what {SHARD_TABLE} says of the shard", number)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield Damage(f"{SHARDS}/{rows_path.name}", f"cannot be read: {error}", number)
    try:
        with open(tensors_path, "rb") as file:
            size, digest = tensors_path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        lost = f"{len(rows)} clips, the first is {rows[0][2]}" if rows else "no clip that is used"
        if size != facts["bytes"]:
            yield Damage(name, f"{size} bytes, {facts['bytes']} recorded; {lost}", number)
            return
        if digest != facts["sha256"]:
            yield Damage(name, f"its bytes have changed since they were written; {lost}", number)
            return
        with safe_open(tensors_path, framework="pt") as tensors:
            known = set(tensors.keys())
            for row, id, source, shape in rows:
                for part in (f"{id}.mean", f"{id}.std"):
                    if (what := _latent(tensors, known, part, shape, dtype)) is not None:
                        yield Damage(name, f"{source} (row {row}): {part} {what}", number)
    except Exception as error:  # safetensors has errors of its own
        yield Damage(name, f"cannot be read: {error}", number)


def _latent(tensors: Any, known: set[str], part: str, shape: list[int], dtype: str) -> str | None:
    """What is wrong with one tensor."""
    if part not in known:
        return "is not there"
    value = tensors.get_tensor(part)
    if list(value.shape) != shape or str(value.dtype) != f"torch.{dtype}":
        return f"is {value.dtype} of shape {list(value.shape)}, {dtype} of {shape} recorded"
    return None if value.isfinite().all() else "is not finite"
