"""The latent store: encoded clips on disk, read back memory-mapped.

A store is a folder:

    store.json                format, clip rules, codec, latent shape, channel statistics, counts, sha256 of each shard
    index.parquet             a row a clip
    quarantine.parquet        a row a clip that could not be encoded, with the reason
    shards/NNNNN.safetensors  "<id>.mean" and "<id>.std", each (channel, frame, height, width)
    shards/NNNNN.parquet      what is known of the clips of that shard, the skipped ones included

store.json is written last: a folder with it is a whole store. A shard counts once both of its files are there.
"""

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
import pyarrow.parquet
import torch
from safetensors import safe_open
from torch import Tensor

from mmdit.errors import Refused

FORMAT = 1
META, INDEX, QUARANTINE, SHARDS = "store.json", "index.parquet", "quarantine.parquet", "shards"
_OPEN_SHARDS = 128  # files held open by one process


def shard_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """The latents and the rows of one shard."""
    return folder / SHARDS / f"{number:05d}.safetensors", folder / SHARDS / f"{number:05d}.parquet"


class LatentStore:
    """A whole store, open for reading. It may be handed to forked and to spawned processes.

    Attributes:
        folder: where it is.
        meta: store.json: "clip" (frames, size, fps, crop), "codec" (name, fingerprint, ...), "latent", "counts", ...
        table: index.parquet, a row a clip. Columns: id, source, start, end, fps, frames, height, width, latent,
            caption, label, split, shard, psnr, source_frames, source_fps, source_height, source_width, reader, and the
            attributes of captions.csv. `caption`, `label` and `psnr` may be null.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], table: pyarrow.Table) -> None:
        self.folder, self.meta, self.table = folder, meta, table
        self._ids = table["id"].combine_chunks()
        self._shards = table["shard"].to_numpy()
        self._files: OrderedDict[int, Any] = OrderedDict()
        self._owner = os.getpid()

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> "LatentStore":
        """Opens a store. The latents themselves are not read.

        Raises:
            Refused: no whole store, one of a newer format, or a shard missing or of another size than recorded.
        """
        folder = Path(folder)
        meta = read_meta(folder)
        if meta is None:
            begun = (folder / SHARDS).is_dir()
            raise Refused(
                "no whole latent store",
                where=folder,
                got="an unfinished one" if begun else "none" if folder.exists() else "no such folder",
                fix="run the same `mmdit encode` command again: it goes on where it ended"
                if begun
                else "make one with `mmdit encode FOLDER --out STORE`",
            )
        for shard in meta["shards"]:
            path = folder / SHARDS / shard["name"]
            size = path.stat().st_size if path.is_file() else "no file"
            if size != shard["bytes"]:
                raise Refused(
                    "a damaged store",
                    where=path,
                    got=size if isinstance(size, str) else f"{size} bytes",
                    expected=f"{shard['bytes']} bytes",
                    fix="remove store.json there and run the same `mmdit encode` command again",
                )
        table = pyarrow.parquet.read_table(folder / INDEX)
        if len(table) != meta["counts"]["clips"]:
            raise Refused(
                "a damaged store", where=folder / INDEX, got=f"{len(table)} rows", expected=meta["counts"]["clips"]
            )
        return cls(folder, meta, table)

    def __reduce__(self) -> Any:
        return LatentStore.open, (self.folder,)

    def __len__(self) -> int:
        return len(self.table)

    def latent(self, row: int) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the normalised latent of one row, each (channel, frame, height, width).

        They are views of the mapped file in the type that the store holds (float16 by default): do not write to them.
        A draw is mean + std * noise, computed in float32.
        """
        number, name = int(self._shards[row]), self._ids[row].as_py()
        file = self._file(number)
        return file.get_tensor(f"{name}.mean"), file.get_tensor(f"{name}.std")

    def _file(self, number: int) -> Any:
        if self._owner != os.getpid():  # forked: the parent's handles are the parent's
            self._files, self._owner = OrderedDict(), os.getpid()
        if number not in self._files:
            path = shard_paths(self.folder, number)[0]
            try:
                self._files[number] = safe_open(path, framework="pt")
            except Exception as error:
                raise Refused("a damaged shard", where=path, got=error) from None
            if len(self._files) > _OPEN_SHARDS:
                self._files.popitem(last=False)
        self._files.move_to_end(number)
        return self._files[number]

    @property
    def labels(self) -> list[str]:
        """The label names, sorted; the number of a label is its place here."""
        return sorted(name for name in pyarrow.compute.unique(self.table["label"]).to_pylist() if name is not None)

    def split(self, name: str) -> list[int]:
        """The rows of one split, in the order of the index; empty when there is no such split."""
        mask = pyarrow.compute.equal(self.table["split"], name).to_numpy()
        return [int(row) for row in mask.nonzero()[0]]

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(channel, frame, height, width) of every latent."""
        channels, frames, height, width = self.meta["latent"]["shape"]
        return channels, frames, height, width

    @property
    def channel_mean(self) -> Tensor:
        """Mean of each latent channel over the whole store, float32 (channel,)."""
        return torch.tensor(self.meta["channel_mean"])

    @property
    def channel_std(self) -> Tensor:
        """Deviation of each latent channel of drawn latents over the whole store, float32 (channel,)."""
        return torch.tensor(self.meta["channel_std"])


def read_meta(folder: Path) -> dict[str, Any] | None:
    """store.json, or None when there is none.

    Raises:
        Refused: it is damaged, or of a newer format than this version of mmdit reads.
    """
    path = folder / META
    if not path.is_file():
        return None
    try:
        meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = int(meta["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused("not a store's store.json", where=path, got=f"{type(error).__name__}: {error}") from None
    check_format(version, path)
    return meta


def check_format(version: int, where: Path) -> None:
    """Refuses what a newer mmdit wrote."""
    if version > FORMAT:
        raise Refused(
            "written by a newer mmdit", where=where, got=f"store format {version}", expected=f"at most {FORMAT}",
            fix="update mmdit",
        )  # fmt: skip
