"""What each step trains on: a pure function of (seed, step, slot), on any number of processes.

Slot is the place in the global batch. Sample number step * batch_size + slot walks through the split once an epoch,
each epoch in an order of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmdit.diffusion.samplers import Process
from mmdit.errors import Refused, Stopped
from mmdit.latents.index import Store
from mmdit.latents.live import LiveStore
from mmdit.seeds import generator
from mmdit.training.config import RunConfig
from mmdit.training.order import EpochOrder


@dataclass(frozen=True)
class Batch:
    """One process's part of a step. Latents are normalised, (batch, channel, frame, height, width), float32."""

    latents: Tensor
    noise: Tensor
    times: Tensor
    """(batch,): in (0, 1) float32 for a flow, whole timesteps int64 for a Gaussian diffusion."""
    labels: Tensor | None
    captions: Tensor | None
    """Rows of `TrainingData.captions`, (batch,); the null condition is already in place where it was drawn."""
    rows: list[int]
    """Rows of the store."""

    def to(self, device: torch.device) -> "Batch":
        moved: dict[str, Any] = {name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def split(self, size: int) -> Iterator["Batch"]:
        """Parts of up to `size` samples, in order."""
        for first in range(0, len(self.rows), size):
            part: dict[str, Any] = {
                name: x[first : first + size] for name, x in vars(self).items() if isinstance(x, Tensor | list)
            }
            yield replace(self, **part)


class TrainingData:
    """The rows of one split of a store, ready to be drawn from.

    `captions` lists each caption that occurs once, the empty prompt first.

    Raises:
        Refused: the split is empty, or lacks the labels or captions that the recipe conditions on.
    """

    def __init__(self, store: Store, split: str, config: RunConfig, process: Process) -> None:
        self.store, self.config, self.process = store, config, process
        self.rows: range = store.split(split)
        if len(self.rows) == 0:
            raise Refused("no clips to train on", where=store.place, got=f"no row of split {split!r}", expected="one")
        self.null_label = len(store.labels)
        self.labels = self._label_ids() if config.conditions.labels else None
        self.captions: list[str] = [""]
        self._caption_of = self._caption_rows() if config.conditions.text is not None else None

    def _check_none_missing(self, missing: NDArray[np.bool_], name: str, what: str) -> None:
        if missing.any():
            first = self.store.row(self.rows[int(missing.argmax())])["source"]
            raise Refused(
                f"clips without a {name}",
                where=self.store.place,
                got=f"{missing.sum()} of {len(missing)}, the first is {first}",
                expected=f"a {name} for each",
                fix=f"add them to captions.csv and encode again, or train without {what}",
            )

    def _label_ids(self) -> Tensor:
        numbers = self.store.label_numbers(self.rows.start, len(self.rows))
        self._check_none_missing(numbers < 0, "label", "conditions.labels")
        return torch.from_numpy(numbers)

    def _caption_rows(self) -> Tensor:
        column = self.store.column("caption", self.rows.start, len(self.rows)).fill_null("")
        chunks = column.dictionary_encode().unify_dictionaries().chunks
        numbers, texts = np.concatenate([chunk.indices for chunk in chunks]), chunks[0].dictionary.to_pylist()
        self._check_none_missing(np.array([not text for text in texts])[numbers], "caption", "conditions.text")
        self.captions += texts
        return torch.from_numpy(numbers + 1)

    def batch(self, step: int, slots: Sequence[int]) -> Batch:
        """The samples in these slots of the global batch of one step."""
        seed, conditions = self.config.seed, self.config.conditions
        size = self.config.data.batch_size
        image = torch.rand((), generator=generator(seed, "image", step)).item() < self.config.data.image_share
        offset = torch.rand((), generator=generator(seed, "times", step), dtype=torch.float64)
        rows = [self.rows[self._place(step * size + slot)] for slot in slots]
        latents, noises, labels, captions = [], [], [], []
        found = self.store.latents(rows)
        if isinstance(self.store, LiveStore):
            self.store.read_ahead([self.rows[self._place((step + 1) * size + slot)] for slot in slots])
        for slot, latent in zip(slots, found, strict=True):
            place = self._place(step * size + slot)
            if latent is None:
                raise Stopped(
                    "a clip cannot be read", where=self.store.place, got=self.store.row(self.rows[place])["source"],
                    fix="remove it, and go on with --accept-data",
                )  # fmt: skip
            mean, std = latent
            if image:
                mean, std = mean[:, :1], std[:, :1]
            random = generator(seed, "sample", step, slot)
            latents.append(mean.float() + std.float() * torch.randn(mean.shape, generator=random))
            noises.append(torch.randn(mean.shape, generator=random))
            drop_label, drop_text = torch.rand(2, generator=random).tolist()
            if self.labels is not None:
                labels.append(self.null_label if drop_label < conditions.drop_label else int(self.labels[place]))
            if self._caption_of is not None:
                captions.append(0 if drop_text < conditions.drop_text else int(self._caption_of[place]))
        return Batch(
            latents=torch.stack(latents),
            noise=torch.stack(noises),
            times=self._times(offset, slots),
            labels=torch.tensor(labels) if self.labels is not None else None,
            captions=torch.tensor(captions) if self._caption_of is not None else None,
            rows=rows,
        )

    def _times(self, offset: Tensor, slots: Sequence[int]) -> Tensor:
        """Times spread evenly over the global batch from one random offset: less variance. Source: 2107.00630, I.1."""
        even = (offset + torch.tensor(slots, dtype=torch.float64) / self.config.data.batch_size) % 1.0
        times = self.process.draw_times(torch.special.ndtri(even.clamp(1e-6, 1 - 1e-6)))
        return times.float() if times.is_floating_point() else times  # timesteps of a diffusion are whole numbers

    def _place(self, sample: int) -> int:
        epoch, number = divmod(sample, len(self.rows))
        return _order(len(self.rows), self.config.seed, epoch)[number]


_order = lru_cache(maxsize=2)(EpochOrder)  # a batch may reach into the next epoch
