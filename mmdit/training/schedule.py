"""Which clip stands where in training, as a function: nothing is listed, and a run's place is its step alone.

Clips of one latent shape make a bucket; a step trains on one bucket. An epoch has every clip once, or as often as the
share of its source asks. No clip is left out: what does not fill a batch stands in the next epoch's first one.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from mmdit.seeds import seed_at
from mmdit.training.order import EpochOrder

_order = lru_cache(maxsize=64)(EpochOrder)  # a batch may reach into the next epoch


def times_an_epoch(counts: Sequence[int], sources: Sequence[int], shares: Sequence[float | None]) -> list[int]:
    """How many samples an epoch draws from each pool of clips.

    Args:
        counts: clips of each pool.
        sources: the number of each pool's source.
        shares: of all samples, for each source; None: each of its clips once.

    Returns:
        `counts` where no source has a share. Else the sources without one keep theirs, and those with one get that
        share of all; where every source has one, each clip comes at least once.
    """
    sizes = [
        sum(count for count, source in zip(counts, sources, strict=True) if source == k) for k in range(len(shares))
    ]
    shared = sum(share for share, size in zip(shares, sizes, strict=True) if share is not None and size)
    free = sum(size for share, size in zip(shares, sizes, strict=True) if share is None)
    if free:
        total = free / (1 - shared)
    else:
        total = max((size / share for share, size in zip(shares, sizes, strict=True) if share and size), default=0.0)
    drawn = []
    for count, source in zip(counts, sources, strict=True):
        share = shares[source]
        drawn.append(count if share is None else max(1, round(total * share * count / sizes[source])))
    return drawn


@dataclass(frozen=True)
class Stream:
    """The endless sequence of the clips of one bucket: `stream[number]` is (pool, place in the pool).

    Args:
        counts: clips of each pool.
        drawn: samples of each pool in an epoch.
    """

    counts: tuple[int, ...]
    drawn: tuple[int, ...]
    seed: int

    @property
    def epoch_size(self) -> int:
        """Samples of an epoch."""
        return sum(self.drawn)

    def __getitem__(self, number: int) -> tuple[int, int]:
        epoch, place = divmod(number, self.epoch_size)
        place = _order(self.epoch_size, self.seed, epoch)[place]
        pool = 0
        while place >= self.drawn[pool]:
            place -= self.drawn[pool]
            pool += 1
        if self.drawn[pool] == self.counts[pool]:
            return pool, place
        turn, place = divmod(epoch * self.drawn[pool] + place, self.counts[pool])
        return pool, _order(self.counts[pool], seed_at(self.seed, "pool", pool), turn)[place]


@dataclass(frozen=True)
class Schedule:
    """Which bucket each step trains on, as often as its share of the samples asks, in an order of each epoch's own.

    After n epochs a bucket has had floor(n * samples / batch) whole batches; the rest of it waits for the next.

    Args:
        samples: of each bucket in an epoch.
        batches: samples a batch of each bucket.
    """

    samples: tuple[int, ...]
    batches: tuple[int, ...]
    seed: int

    def at(self, step: int) -> tuple[int, int]:
        """The bucket of a step, and which of its batches this is, from 0."""
        if len(self.samples) == 1:
            return 0, step
        epoch = self._epoch_of(step)
        order = _buckets_of_epoch(self, epoch)
        place = step - self._steps_before(epoch)
        bucket = int(order[place])
        return bucket, self._done(bucket, epoch) + int((order[:place] == bucket).sum())

    def _done(self, bucket: int, epoch: int) -> int:
        return epoch * self.samples[bucket] // self.batches[bucket]

    def _steps_before(self, epoch: int) -> int:
        return sum(self._done(bucket, epoch) for bucket in range(len(self.samples)))

    def _epoch_of(self, step: int) -> int:
        last = 1
        while self._steps_before(last) <= step:
            last *= 2
        return bisect_right(range(last + 1), step, key=self._steps_before) - 1


@lru_cache(maxsize=2)
def _buckets_of_epoch(schedule: Schedule, epoch: int) -> NDArray[np.int32]:
    """The bucket of each step of an epoch."""
    counts = [
        schedule._done(bucket, epoch + 1) - schedule._done(bucket, epoch) for bucket in range(len(schedule.samples))
    ]
    buckets = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return buckets[list(EpochOrder(len(buckets), seed_at(schedule.seed, "buckets"), epoch))]
