"""What the averaged weights lose on clips that they were not trained on: over all, by noise level and by label.

Noise, times and clips are the same each time, and on any number of processes; nothing of the training is touched.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmdit.diffusion import GaussianDiffusion
from mmdit.diffusion.samplers import Process
from mmdit.training.data import Batch, Part, TrainingData
from mmdit.training.run import Run

# Times of a flow; shares of the timesteps of a Gaussian diffusion.
LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)

Losses = Callable[[Batch], Tensor]


@torch.no_grad()
def held_out(run: Run, losses: Losses) -> dict[str, Any]:
    """The keys that a line of metrics.jsonl has at a validation; none where the store has no such split.

    `val_loss` is the loss as it is trained: times, dropped conditions and single frames as the recipe draws them.
    `val_noise` ({"0.1": loss, ...}) is that of whole clips with all that is told of them, each clip at each of
    `LEVELS` with the same noise, so that levels differ by nothing else. `val_labels` ({label name: loss}) is the mean
    of the same losses over the clips of a label: every label is measured at the same levels. None: not finite.

    Called on every process; each takes a share of the clips.

    Args:
        losses: of each sample of a batch, by the weights of `run.trainee`, (batch,).
    """
    if "validation" not in run.splits:
        return {}
    data, device = run.splits["validation"], run.accelerator.device
    count = sum(part.count for part in _parts(run, data))
    # A row each: as trained, the levels, and 1 at what could be read, which a video may not be.
    found = torch.zeros(1 + len(LEVELS) + 1, count, device=device)
    labels = torch.zeros(count, dtype=torch.long, device=device)
    with run.ema.in_place_of_weights(run.trainee):
        run.trainee.eval()
        for (clips, drawn), (_, whole) in zip(_shares(run, data), _shares(run, whole_clips(data)), strict=True):
            at_levels = [replace(whole, times=times_at(run.process, level, len(whole))) for level in LEVELS]
            for row, batch in enumerate([drawn, *at_levels]):
                found[row, clips.start : clips.stop] = _in_parts(run, batch.to(device), losses)[: len(clips)]
            could_be_read = torch.ones(len(whole)) if whole.weights is None else whole.weights
            found[-1, clips.start : clips.stop] = could_be_read[: len(clips)].to(device)
            if whole.labels is not None:
                labels[clips.start : clips.stop] = whole.labels[: len(clips)].to(device)
        run.trainee.train()
    found, labels = run.accelerator.reduce(found), run.accelerator.reduce(labels)
    found, labels = found[:-1, found[-1] > 0], labels[found[-1] > 0]
    by_level = {str(level): _finite(each.mean()) for level, each in zip(LEVELS, found[1:], strict=True)}
    measured: dict[str, Any] = {"val_loss": _finite(found[0].mean()), "val_noise": by_level}
    if data.labels is not None:
        of_clips = found[1:].mean(0)
        measured["val_labels"] = {
            run.sources.labels[label]: _finite(of_clips[labels == label].mean()) for label in labels.unique().tolist()
        }
    return measured


def whole_clips(data: TrainingData) -> TrainingData:
    """The same clips, noise and order, none cut to a frame, no frame given and no condition dropped."""
    config = data.config
    whole = copy.copy(data)
    whole.config = config.model_copy(
        update={
            "data": config.data.model_copy(update={"image_share": 0.0}),
            "conditions": config.conditions.model_copy(
                update={"drop_label": 0.0, "drop_text": 0.0, "given_frames": {}}
            ),
        }
    )
    return whole


def times_at(process: Process, level: float, count: int) -> Tensor:
    """(count,) times of one noise level, as the process counts them."""
    if isinstance(process, GaussianDiffusion):
        return torch.full((count,), int(level * process.timesteps))
    return torch.full((count,), level)


def _shares(run: Run, data: TrainingData) -> Iterator[tuple[range, Batch]]:
    """This process's part of each batch of validation clips, and which of the clips these are.

    Shares are of equal size on all processes, filled up with a clip that does not count: weights that are split over
    processes come together in every forward pass.
    """
    rank, processes = run.accelerator.process_index, run.accelerator.num_processes
    first = 0
    for part in _parts(run, data):
        share = math.ceil(part.count / processes)
        mine = range(min(share * rank, part.count), min(share * (rank + 1), part.count))
        slots = [*mine, *[0] * (share - len(mine))]
        yield range(first + mine.start, first + mine.stop), data.held_out_batch(part, slots)
        first += part.count


def _parts(run: Run, data: TrainingData) -> list[Part]:
    return data.held_out(run.config.validation_clips, run.config.data.batch_size)


def _in_parts(run: Run, batch: Batch, losses: Losses) -> Tensor:
    return torch.cat([losses(part) for part in batch.split(run.config.data.micro_batch or len(batch))])


def _finite(loss: Tensor) -> float | None:
    return loss.item() if loss.isfinite() else None
