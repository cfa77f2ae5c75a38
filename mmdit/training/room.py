"""Room for a run: on the disk before it begins, in memory while it goes on."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mmdit.errors import Refused, Stopped
from mmdit.training import checkpoint as checkpoints
from mmdit.training.run import Run

_CPU_IS_OUT = "can't allocate memory"  # in the text of what torch raises then


def check_room(run: Run) -> None:
    """Refused where the disk has no room for the checkpoints that the run will hold at one time."""
    if run.step == run.config.steps:
        return
    # Weights, average, two moments; while parts of the first two are put together they are there twice.
    held = 4 if run.writers is None else 6
    copies = [(weight, held if weight.requires_grad else 1) for weight in run.trainee.parameters()]
    one = sum(count * weight.numel() * weight.element_size() for weight, count in copies)
    count = max(1, run.config.keep_checkpoints + 1 - len(checkpoints.list_checkpoints(run.folder)))
    free = shutil.disk_usage(run.folder).free
    if free < one * count:
        raise Refused(
            "not enough room on the disk", where=run.folder, got=f"{free / 1e6:.1f} MB free",
            expected=f"{one * count / 1e6:.1f} MB: {count} checkpoints of up to {one / 1e6:.1f} MB",
            fix="make room, or keep fewer with keep_checkpoints",
        )  # fmt: skip


@contextmanager
def memory_told(run: Run) -> Iterator[None]:
    """Inside, out of memory is a Stopped that says how large the step was and what makes it smaller."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        out = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or _CPU_IS_OUT in str(error)
        if not out:
            raise
        data, processes = run.config.data, run.accelerator.num_processes
        share = data.batch_size // processes
        at_once = min(share, data.micro_batch or share)
        channels, frames, height, width = run.pool.latent
        raise Stopped(
            "out of memory", where=f"{run.folder}, step {run.step}, on {run.accelerator.device}",
            got=f"{at_once} clips at once of {share} a process, latents {channels}x{frames}x{height}x{width}",
            fix=f"set data.micro_batch={max(1, at_once // 2)}, model.checkpointing=1 or sharding=full, or encode "
            "smaller clips; the same command goes on from the last checkpoint",
        ) from error  # fmt: skip
