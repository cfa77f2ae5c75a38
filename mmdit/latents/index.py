"""What is known of the clips of a store, by row; where their latents come from is told by each kind of store."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
from numpy.typing import NDArray
from torch import Tensor

from mmdit.errors import Refused
from mmdit.latents.layout import AGAIN, INDEX, Group
from mmdit.latents.place import Place
from mmdit.latents.rows import Rows

Latent = tuple[Tensor, Tensor]
"""Mean and deviation of a normalised latent, each (channel, frame, height, width), in the type that a store holds."""


class Store(ABC):
    """Clips that a network is trained on, by row: encoded ones (`LatentStore`), or videos (`LiveStore`).

    Attributes:
        place: where it is.
        meta: store.json: "settings" (codec, dtype, tiling), "codec" (name, fingerprint, ...), "counts", ...
        groups: the rows by split and shape.
        labels: the label names; the number of a label is its place here, and the null class is the number after.
    """

    def __init__(self, place: Place, meta: dict[str, Any], index: Rows) -> None:
        self.place, self.meta = place, meta
        self.groups = tuple(Group(**group | {"latent": tuple(group["latent"])}) for group in meta["groups"])
        self.labels: list[str] = list(meta["labels"])
        self._index = index

    @abstractmethod
    def latents(self, rows: Sequence[int]) -> list[Latent | None]:
        """The latents of these rows; None where a clip cannot be read, which only videos can come to.

        A draw is mean + std * noise, computed in float32.
        """

    def __len__(self) -> int:
        return len(self._index)

    def row(self, number: int) -> dict[str, Any]:
        """What is known of one clip, by column: id, source, start, end, fps, frames, height, width, flip, stride,
        speed, latent, caption, label, split, shard, psnr, source_frames, source_fps, source_height, source_width,
        reader, and the attributes. `caption`, `label`, `psnr` and `stride` may be None.

        Raises:
            IndexError: no such row.
        """
        return self._index.row(number)

    def column(self, name: str, first: int = 0, count: int | None = None) -> pyarrow.ChunkedArray:
        """One column of `count` rows (None: all that follow) from row `first` on; `IndexError` where there are none."""
        return self._index.column(name, first, count)

    @cached_property
    def table(self) -> pyarrow.Table:
        """The whole index, for small stores."""
        return self._index.table()

    def row_of(self, id: str) -> int:
        """The first row with this id. All ids before it are read: for a few clips, not for many.

        Raises:
            Refused: no such clip.
        """
        first = 0
        while first < len(self):
            part, _ = self._index.part(first, ("id", "shard"))
            place = pyarrow.compute.index(part["id"], id).as_py()
            if place >= 0:
                return first + place
            first += len(part)
        raise Refused("no such clip in the store", where=self.place, got=id, expected="the id of a row")

    def label_numbers(self, first: int = 0, count: int | None = None) -> NDArray[np.int64]:
        """The number of each label of these rows, -1 where there is none; never the null class.

        Raises:
            Refused: a label that is not among the names, with its row.
        """
        column = self.column("label", first, count)
        known = pyarrow.array(self.labels, pyarrow.string())
        numbers = pyarrow.compute.index_in(column.cast(pyarrow.string()), known).fill_null(-1).to_numpy()
        unknown = np.flatnonzero((numbers < 0) & column.is_valid().to_numpy())
        if len(unknown):
            row = int(unknown[0])
            raise Refused(
                "a label that is not among the names", where=f"{self.place.where(INDEX)}, row {first + row}",
                got=repr(column[row].as_py()), expected=f"one of the {len(self.labels)} labels of store.json",
                fix=AGAIN,
            )  # fmt: skip
        return numbers.astype(np.int64)

    def split(self, name: str) -> range:
        """The rows of one split; empty when there is no such split."""
        groups = [group for group in self.groups if group.split == name]
        return range(groups[0].first, groups[-1].rows.stop) if groups else range(0)

    @property
    def clip(self) -> dict[str, Any]:
        """What every clip is: "frames", "size" (height, width), "fps".

        Raises:
            Refused: there are several kinds.
        """
        if self.meta["clip"] is None:
            raise Refused(
                "the store holds clips of several shapes or frame rates", where=self.place, expected="one kind",
                fix="encode clips of one kind into a store of their own",
            )  # fmt: skip
        return self.meta["clip"]
