"""The encoded clips of a run: one store, or several that fit together."""

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mmdit.errors import Refused
from mmdit.latents.index import Latent, Store
from mmdit.latents.layout import Group
from mmdit.latents.live import LiveStore, Skipped
from mmdit.training.data_config import DataConfig
from mmdit.training.videos import open_data

Place = tuple[int, int]
"""A clip of a run: the number of its source, and its row there."""


@dataclass(frozen=True)
class Pool:
    """Clips of one source, split and shape."""

    source: int
    group: Group

    @property
    def latent(self) -> tuple[int, int, int, int]:
        """(channel, frame, height, width)."""
        return self.group.latent


class Sources:
    """The stores of a run, by number.

    Attributes:
        stores: in the recipe's order.
        shares: of the samples, one a store; None where each clip comes once an epoch.
        labels: the label names of all stores; the number of a label is its place here.
        codec: what the stores know of their codec, which is the same.

    Raises:
        Refused: two stores were encoded with unlike codecs.
    """

    def __init__(self, stores: list[Store], shares: list[float | None]) -> None:
        self.stores, self.shares = stores, shares
        self._reading = threading.Lock()  # the next batch is made in a thread, while another split is looked at
        self.labels = list(dict.fromkeys(label for store in stores for label in store.labels))
        self.codec: dict[str, Any] = stores[0].meta["codec"]
        for store in stores[1:]:
            codec = store.meta["codec"]
            if codec["fingerprint"] != self.codec["fingerprint"]:
                raise Refused(
                    "the sources were encoded with unlike codecs", where=store.place,
                    got=f"{codec['name']} {codec['fingerprint'][:16]}",
                    expected=f"{self.codec['name']} {self.codec['fingerprint'][:16]}, as in {stores[0].place}",
                    fix="encode all of them with one codec",
                )  # fmt: skip

    @classmethod
    def open(cls, config: DataConfig, device: torch.device | str = "cpu", folder: Path | None = None) -> "Sources":
        """Opens what the recipe names; every process of a run calls it alike.

        Args:
            device: where videos are encoded.
            folder: the run's, where what is found out about videos is kept; None: nowhere.

        Raises:
            Refused: what `open_data` refuses, and two sources that do not fit together.
        """
        if config.sources is None:
            return cls([open_data(config, torch.device(device), folder)], [None])
        stores = [
            open_data(source, torch.device(device), folder and folder / "sources" / str(number))
            for number, source in enumerate(config.sources)
        ]
        return cls(stores, [source.share for source in config.sources])

    def __reduce__(self) -> Any:
        return Sources, (self.stores, self.shares)

    @property
    def where(self) -> str:
        """The stores, for messages."""
        return ", ".join(str(store.place) for store in self.stores)

    def pools(self, split: str) -> list[Pool]:
        """The clips of a split, by source and shape."""
        return [
            Pool(number, group)
            for number, store in enumerate(self.stores)
            for group in store.groups
            if group.split == split and group.count
        ]

    def row(self, place: Place) -> dict[str, Any]:
        """What is known of one clip: `LatentStore.row`."""
        return self.stores[place[0]].row(place[1])

    def latents(self, places: Sequence[Place]) -> list[Latent | None]:
        """Mean and deviation of each clip's latent; None where a video cannot be read."""
        found: dict[Place, Latent | None] = {}
        with self._reading:
            for number, rows in _by_source(places).items():
                found |= zip(((number, row) for row in rows), self.stores[number].latents(rows), strict=True)
        return [found[place] for place in places]

    @property
    def live(self) -> bool:
        """Whether some clips are encoded when they are asked for."""
        return any(isinstance(store, LiveStore) for store in self.stores)

    def read_ahead(self, places: Sequence[Place]) -> None:
        """Begins to read the videos among these clips, for a `latents` to come."""
        for number, rows in _by_source(places).items():
            store = self.stores[number]
            if isinstance(store, LiveStore):
                store.read_ahead(rows)

    @property
    def skipped(self) -> list[Skipped]:
        """The videos that could not be read so far, and those whose headers say so."""
        return [clip for store in self.stores if isinstance(store, LiveStore) for clip in store.skipped]

    def label_numbers(self, pool: Pool) -> NDArray[np.int64]:
        """The number of each label of the pool's clips, -1 where there is none."""
        store = self.stores[pool.source]
        numbers = store.label_numbers(pool.group.first, pool.group.count)
        renumbered = np.array([*(self.labels.index(label) for label in store.labels), -1], dtype=np.int64)
        return renumbered[numbers]

    def main_pool(self, split: str) -> Pool:
        """What stands for the run where one kind of clip is wanted: most clips, videos before images.

        Raises:
            Refused: the split is empty.
        """
        pools = self.pools(split)
        if not pools:
            raise Refused("no clips to train on", where=self.where, got=f"no row of split {split!r}", expected="one")
        counts = Counter[tuple[int, int, int, int]]()
        for pool in pools:
            counts[pool.latent] += pool.group.count
        return max(pools, key=lambda pool: (pool.latent[1] > 1, counts[pool.latent], -pools.index(pool)))

    def clip(self, pool: Pool) -> dict[str, Any]:
        """What the clips of a pool are: "frames", "size" (height, width), "fps"."""
        store, group = self.stores[pool.source], pool.group
        known: dict[str, Any] | None = store.meta["clip"]
        if known is not None:
            return known
        fps = store.row(group.first)["fps"]
        return {"frames": group.frames, "size": [group.height, group.width], "fps": fps}


def _by_source(places: Sequence[Place]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {}
    for number, row in places:
        rows.setdefault(number, []).append(row)
    return rows
