"""What each step trains on: a pure function of (seed, step, slot), on any number of processes.

Slot is the place in the global batch. Where all clips have one shape, sample number step * batch_size + slot walks
through the split once an epoch, each epoch in an order of its own; `mmdit.training.schedule` tells the rest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdit.conditioning.frames import draw_kind, given_mask
from mmdit.errors import Refused
from mmdit.seeds import generator
from mmdit.training.buckets import Bucket, make_buckets
from mmdit.training.build import patch_size
from mmdit.training.config import RunConfig
from mmdit.training.schedule import Schedule
from mmdit.training.sources import Place, Pool, Sources
from mmdit.training.texts import Text, Texts


@dataclass(frozen=True)
class Batch:
    """One process's part of a step. Latents are normalised, (batch, channel, frame, height, width), float32."""

    latents: Tensor
    noise: Tensor
    times: Tensor
    """(batch,): in (0, 1) float32 for a flow, whole timesteps int64 for a Gaussian diffusion."""
    labels: Tensor | None
    text: Text | None
    """What the captions are to the trainee, each (batch, ...); the null condition is already in place where drawn."""
    given: Tensor | None
    """(batch, frame): True at the frames that the network is shown."""
    places: list[Place]
    """Which clips these are."""
    weights: Tensor | None = None
    """(batch,): 0 at clips that could not be read, whose latents are nothing, else 1; None where all could be."""

    def __len__(self) -> int:
        return len(self.places)

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self._each(Tensor.pin_memory)

    def split(self, size: int) -> Iterator["Batch"]:
        """Parts of up to `size` samples, in order."""
        for first in range(0, len(self), size):
            part = slice(first, first + size)
            yield replace(self._each(lambda x, part=part: x[part]), places=self.places[part])

    def _each(self, change: Any) -> "Batch":
        changed: dict[str, Any] = {name: change(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        if self.text is not None:
            changed["text"] = tuple(change(x) for x in self.text)
        return replace(self, **changed)


@dataclass(frozen=True)
class Part:
    """Some of the held-out clips: `count` samples of a bucket's stream from number `first` on."""

    number: int
    bucket: Bucket
    first: int
    count: int


class TrainingData:
    """The clips of one split, ready to be drawn from.

    `captions` lists each caption that occurs once, the empty prompt first; whoever makes `texts` of them sets those.

    Raises:
        Refused: the split is empty or smaller than a batch, or lacks the labels or captions that the recipe
            conditions on.
    """

    def __init__(self, sources: Sources, split: str, config: RunConfig) -> None:
        self.sources, self.config = sources, config
        self.pools: list[Pool] = sources.pools(split)
        if not self.pools:
            raise Refused("no clips to train on", where=sources.where, got=f"no row of split {split!r}", expected="one")
        self.buckets = make_buckets(self.pools, sources, config, training=split == config.data.split)
        self.schedule = Schedule(
            tuple(bucket.stream.epoch_size for bucket in self.buckets),
            tuple(bucket.batch_size for bucket in self.buckets),
            config.seed,
        )
        self.labels = [self._label_ids(pool) for pool in self.pools] if config.conditions.labels else None
        self.captions: list[str] = [""]
        self._caption_of = self._caption_ids() if config.conditions.text is not None else None
        self.texts: Texts | None = None

    def __len__(self) -> int:
        return sum(pool.group.count for pool in self.pools)

    def _check_none_missing(self, pool: Pool, missing: NDArray[np.bool_], name: str, what: str) -> None:
        if missing.any():
            store = self.sources.stores[pool.source]
            raise Refused(
                f"clips without a {name}",
                where=store.place,
                got=f"{missing.sum()} of {len(missing)}, the first is "
                f"{store.row(pool.group.first + int(missing.argmax()))['source']}",
                expected=f"a {name} for each",
                fix=f"add them to captions.csv and encode again, or train without {what}",
            )

    def _label_ids(self, pool: Pool) -> Tensor:
        numbers = self.sources.label_numbers(pool)
        self._check_none_missing(pool, numbers < 0, "label", "conditions.labels")
        return torch.from_numpy(numbers)

    def _caption_ids(self) -> list[Tensor]:
        known: dict[str, int] = {"": 0}
        ids = []
        for pool in self.pools:
            store, group = self.sources.stores[pool.source], pool.group
            column = store.column("caption", group.first, group.count).fill_null("")
            chunks = column.dictionary_encode().unify_dictionaries().chunks
            numbers, texts = np.concatenate([chunk.indices for chunk in chunks]), chunks[0].dictionary.to_pylist()
            self._check_none_missing(
                pool, np.array([not text for text in texts])[numbers], "caption", "conditions.text"
            )
            ids.append(torch.from_numpy(np.array([known.setdefault(text, len(known)) for text in texts])[numbers]))
        self.captions = list(known)
        return ids

    def batch_size(self, step: int) -> int:
        """Clips in the global batch of a step."""
        return self.buckets[self.schedule.at(step)[0]].batch_size

    def micro_batch(self, step: int) -> int | None:
        """Most clips of a step's batch that a process computes at once."""
        data = self.config.data
        if data.micro_batch is None:
            return None
        return data.micro_batch * self.batch_size(step) // data.batch_size

    def batch(self, step: int, slots: Sequence[int]) -> Batch:
        """The samples in these slots of the global batch of one step."""
        bucket, number = self.schedule.at(step)
        first = number * self.buckets[bucket].batch_size
        return self._draw(self.buckets[bucket], step, slots, first)

    def places(self, step: int, slots: Sequence[int]) -> list[Place]:
        """The clips in these slots of a step."""
        bucket, number = self.schedule.at(step)
        first = number * self.buckets[bucket].batch_size
        return [self._place(*self._found(self.buckets[bucket], first + slot)) for slot in slots]

    def held_out(self, count: int, size: int) -> list["Part"]:
        """The parts, of up to `size` samples, in which up to `count` clips are measured: of each bucket its share."""
        parts: list[Part] = []
        total = sum(bucket.stream.epoch_size for bucket in self.buckets)
        for bucket in self.buckets:
            clips = bucket.stream.epoch_size
            wanted = min(clips, max(1, round(count * clips / total)))
            for first in range(0, wanted, size):
                parts.append(Part(len(parts), bucket, first, min(size, wanted - first)))
        return parts

    def held_out_batch(self, part: "Part", slots: Sequence[int]) -> Batch:
        """These slots of a part, at the same noise and times each time."""
        return self._draw(part.bucket, part.number, slots, part.first)

    def _draw(self, bucket: Bucket, step: int, slots: Sequence[int], first: int) -> Batch:
        """Samples `first` + slot of a bucket's stream."""
        seed, conditions = self.config.seed, self.config.conditions
        image = torch.rand((), generator=generator(seed, "image", step)).item() < self.config.data.image_share
        offset = torch.rand((), generator=generator(seed, "times", step), dtype=torch.float64)
        found = [self._found(bucket, first + slot) for slot in slots]
        places = [self._place(*at) for at in found]
        stored = self.sources.latents(places)
        channels, frames, height, width = self.pools[bucket.pools[0]].latent
        shape = (channels, 1 if image else frames, height, width)
        nothing = torch.zeros(shape)  # of a video that cannot be read, with weight 0
        means, stds = (
            torch.stack([nothing if latent is None else latent[part][:, : shape[1]] for latent in stored]).float()
            for part in (0, 1)
        )
        draws, noise = torch.empty(len(places), *shape), torch.empty(len(places), *shape)
        labels, captions = [], []
        for place, (slot, (pool, number)) in enumerate(zip(slots, found, strict=True)):
            random = generator(seed, "sample", step, slot)
            draws[place].normal_(generator=random)
            noise[place].normal_(generator=random)
            drop_label, drop_text = torch.rand(2, generator=random).tolist()
            if self.labels is not None:
                label = int(self.labels[pool][number])
                labels.append(len(self.sources.labels) if drop_label < conditions.drop_label else label)
            if self._caption_of is not None:
                caption = int(self._caption_of[pool][number])
                captions.append(0 if drop_text < conditions.drop_text else caption)
        return Batch(
            latents=draws.mul_(stds).add_(means),
            noise=noise,
            times=self._times(bucket, offset, slots),
            labels=torch.tensor(labels) if self.labels is not None else None,
            text=self.texts.rows(captions) if self.texts is not None else None,
            given=self._given(step, slots, shape[1]),
            places=places,
            weights=torch.tensor([float(latent is not None) for latent in stored]) if None in stored else None,
        )

    def _found(self, bucket: Bucket, sample: int) -> tuple[int, int]:
        """A sample of a bucket's stream: the number of the pool, and the place in it."""
        pool, number = bucket.stream[sample]
        return bucket.pools[pool], number

    def _place(self, pool: int, number: int) -> Place:
        return self.pools[pool].source, self.pools[pool].group.first + number

    def _times(self, bucket: Bucket, offset: Tensor, slots: Sequence[int]) -> Tensor:
        """Times spread evenly over the global batch from one random offset: less variance. Source: 2107.00630, I.1."""
        even = (offset + torch.tensor(slots, dtype=torch.float64) / bucket.batch_size) % 1.0
        times = bucket.process.draw_times(torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6)))
        return times.float() if times.is_floating_point() else times  # timesteps of a diffusion are whole numbers

    def _given(self, step: int, slots: Sequence[int], frames: int) -> Tensor | None:
        shares = self.config.conditions.given_frames
        if not shares or frames == 1:
            return None
        masks = []
        for slot in slots:
            random = generator(self.config.seed, "given", step, slot)
            kind = draw_kind(shares, torch.rand((), generator=random).item())
            masks.append(given_mask(kind, frames, random, patch=patch_size(self.config.model)[0]))
        return torch.stack(masks)
