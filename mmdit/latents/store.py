"""The latent store: encoded clips on disk, read back memory-mapped.

A store is a folder:

    store.json                format, settings, codec, groups, label names, channel statistics, counts, table hashes
    index.parquet             a row a clip, the rows of a group together
    shards.parquet            a row a shard: number, name, bytes, sha256, clips
    quarantine.parquet        a row a clip that could not be encoded, with the reason
    shards/NNNNN.safetensors  "<id>.mean" and "<id>.std", each (channel, frame, height, width)
    shards/NNNNN.parquet      what is known of the clips of that shard, the skipped ones included

store.json is written last: a folder with it is a whole store. A shard counts once both of its files are there.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from mmdit.errors import Refused
from mmdit.latents import format_1
from mmdit.latents.cache import ShardCache
from mmdit.latents.index import Latent, Store
from mmdit.latents.layout import AGAIN, FIX, INDEX, META, SHARD_TABLE, SHARDS, parse_meta
from mmdit.latents.place import Place, Shard, place_of
from mmdit.latents.rows import Rows

_MAKE = "make one with `mmdit encode FOLDER --out STORE`"
_WAYS = {"an unfinished one": "run the same `mmdit encode` command again: it goes on where it ended"}


class LatentStore(Store):
    """A whole store, open for reading. It may be handed to forked and to spawned processes.

    What it costs to open does not grow with the number of clips: tables are read a part at a time, where they are
    asked for, and shards are looked at when they are first read from.
    """

    def __init__(self, place: Place, meta: dict[str, Any], index: Rows, shards: Rows) -> None:
        super().__init__(place, meta, index)
        self._shards = shards
        self._files: OrderedDict[int, tuple[Any, Shard]] = OrderedDict()
        self._owner = os.getpid()

    @classmethod
    def open(cls, folder: str | os.PathLike[str], cache: ShardCache | None = None) -> "LatentStore":
        """Opens a store. Neither the latents nor the rows of its tables are read.

        Args:
            folder: a folder, or a URL that fsspec knows. Shards at a URL are fetched when they are first read from.
            cache: where fetched shards are kept; None: `ShardCache()`. Clips are drawn from everywhere in each epoch,
                so shards that do not fit there are fetched again and again.

        Raises:
            Refused: no whole store, one of a newer format, or tables that store.json does not fit.
        """
        place = place_of(folder, cache)
        data = place.meta()
        if data is None:
            raise Refused(
                "no whole latent store", where=place, got=(found := place.found()), fix=_WAYS.get(found, _MAKE)
            )
        meta = parse_meta(data, place.where(META))
        if meta["format"] == 1:
            whole = Rows(lambda: place.table(INDEX), place.where(INDEX)).table()
            meta, *tables = format_1.as_format_2(whole, meta)
            index, shards = map(Rows.of_table, tables)
        else:
            index = Rows(lambda: place.table(INDEX), place.where(INDEX))
            shards = Rows(lambda: place.table(SHARD_TABLE), place.where(SHARD_TABLE))
        store = cls(place, meta, index, shards)
        ends = [0, *(group.first + group.count for group in store.groups)]
        whole = ends[-1] == meta["counts"]["clips"] and [group.first for group in store.groups] == ends[:-1]
        if len(index) != ends[-1] or not whole:
            raise Refused(
                "a damaged store", where=place.where(INDEX), got=f"{len(index)} rows",
                expected=f"{meta['counts']['clips']}, as store.json says", fix=AGAIN,
            )  # fmt: skip
        return store

    def __reduce__(self) -> Any:
        return LatentStore.open, (str(self.place), getattr(self.place, "cache", None))

    def latent(self, row: int) -> Latent:
        """Mean and deviation of the normalised latent of one row, each (channel, frame, height, width).

        They are views of the mapped file in the type that the store holds (float16 by default): do not write to them.
        A draw is mean + std * noise, computed in float32.

        Raises:
            Refused: the shard is missing, damaged, or of another size than recorded.
            IndexError: no such row.
        """
        number, id = self.location(row)
        file, shard = self._file(number)
        try:
            return file.get_tensor(f"{id}.mean"), file.get_tensor(f"{id}.std")
        except Exception as error:
            raise Refused("a damaged shard", where=shard.path, got=error, fix=FIX) from None

    def latents(self, rows: Sequence[int]) -> list[Latent | None]:
        """`latent` of each row."""
        return [self.latent(row) for row in rows]

    def location(self, row: int) -> tuple[int, str]:
        """The number of the shard that a row's latent is in, and its id there."""
        part, place = self._index.part(row, ("id", "shard"))
        return part["shard"][place].as_py(), part["id"][place].as_py()

    @cached_property
    def shards(self) -> dict[int, dict[str, Any]]:
        """What store and shards must agree on, by number of the shard: name, bytes, sha256, clips."""
        names = ("number", "name", "bytes", "sha256", "clips")
        columns = [self._shards.column(name).to_pylist() for name in names]
        return {row[0]: dict(zip(names[1:], row[1:], strict=True)) for row in zip(*columns, strict=True)}

    def _file(self, number: int) -> tuple[Any, Shard]:
        if self._owner != os.getpid():  # forked: the parent's handles are the parent's
            self._files, self._owner = OrderedDict(), os.getpid()
        if number not in self._files:
            while len(self._files) >= self.place.open_shards:
                self._files.popitem(last=False)
            facts = self.shards[number]
            shard = self.place.shard(facts)
            try:
                self._files[number] = safe_open(shard.path, framework="pt"), shard
            except Exception as error:
                where = self.place.where(f"{SHARDS}/{facts['name']}")
                raise Refused("a damaged shard", where=where, got=error, fix=FIX) from None
        self._files.move_to_end(number)
        return self._files[number]

    @property
    def channel_mean(self) -> Tensor:
        """Mean of each latent channel over the whole store, float32 (channel,)."""
        return torch.tensor(self.meta["channel_mean"])

    @property
    def channel_std(self) -> Tensor:
        """Deviation of each latent channel of drawn latents over the whole store, float32 (channel,)."""
        return torch.tensor(self.meta["channel_std"])
