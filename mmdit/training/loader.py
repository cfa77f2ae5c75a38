"""The batches of a run in order, made ahead."""

import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from torch.utils.data import DataLoader, Dataset

from mmdit.errors import MmditError, Stopped
from mmdit.training.data import Batch, TrainingData


class _Steps(Dataset[Batch | MmditError]):
    """A process's part of each step's batch, or what is wrong with it."""

    def __init__(self, data: TrainingData, process: int, processes: int) -> None:
        self.data, self.process, self.processes = data, process, processes

    def slots(self, step: int) -> range:
        share = self.data.batch_size(step) // self.processes
        return range(share * self.process, share * (self.process + 1))

    def __getitem__(self, step: int) -> Batch | MmditError:
        try:
            batch = self.data.batch(step, self.slots(step))
            if self.data.sources.live:
                self.data.sources.read_ahead(self.data.places(step + 1, self.slots(step + 1)))
            return batch
        except MmditError as error:  # raised in a worker, it would come with that one's traceback in its text
            return error


def batches(data: TrainingData, steps: range, process: int, processes: int, *, pin: bool = False) -> Iterator[Batch]:
    """This process's part of the batch of each step, made while the step before is computed.

    What comes does not depend on `data.workers`: with some, that many processes make the next batches, else a thread
    makes the next one.

    Args:
        pin: put them into page-locked memory, from which they reach a CUDA device sooner.

    Raises:
        Stopped: a worker was killed; the clips are named that are waited for.
    """
    parts, workers = _Steps(data, process, processes), data.config.data.workers
    made = _from_workers(parts, steps, workers) if workers else _from_thread(parts, steps)
    for batch in made:
        if isinstance(batch, MmditError):
            raise batch
        yield batch.pin_memory() if pin else batch


def _from_thread(parts: _Steps, steps: range) -> Iterator[Batch | MmditError]:
    with ThreadPoolExecutor(1, "batches") as thread:
        ahead = thread.submit(parts.__getitem__, steps.start)
        for step in steps:
            batch = ahead.result()
            if step + 1 < steps.stop:
                ahead = thread.submit(parts.__getitem__, step + 1)
            yield batch


def _from_workers(parts: _Steps, steps: range, workers: int) -> Iterator[Batch | MmditError]:
    loader: Any = DataLoader(parts, batch_size=None, sampler=steps, num_workers=workers, collate_fn=_same)
    ready = iter(loader)
    handler: Any = signal.getsignal(signal.SIGCHLD)
    if getattr(handler, "__module__", "").startswith("torch.") and _is_main_thread():
        # torch's handler would raise in the middle of whatever is being done; that a worker is gone is seen here too.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for step in steps:
            try:
                batch = next(ready)
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise _killed(parts, step, error) from error
            yield batch
    finally:
        ready._shutdown_workers()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _same(batch: Any) -> Any:
    return batch


def _killed(parts: _Steps, step: int, error: Exception) -> Stopped:
    ids = ", ".join(parts.data.sources.row(place)["id"] for place in parts.data.places(step, parts.slots(step))[:4])
    return Stopped(
        "a loader worker was killed", where=f"step {step}, clips {ids} ...", got=str(error).splitlines()[0],
        fix="the same command goes on from the last checkpoint; where memory ran out, lower data.workers",
    )  # fmt: skip
