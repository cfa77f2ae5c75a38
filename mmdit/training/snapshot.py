"""Writing while training goes on: a step waits for a copy of its tensors, and a thread makes files of the copy."""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Self

import torch
from torch import Tensor

log = logging.getLogger("mmdit.training")


class Writer:
    """One thread that does one work at a time, and the memory that the copies for it lie in.

    A context manager: leaving it waits for the work under way, so that what holds the run's folder is not let go of
    before. A failure that nobody waited for is then logged.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._held: dict[str, Tensor] = {}

    def copy(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors as they are now, in the CPU's memory; the next copy of these names overwrites it.

        Call `wait` before. The memory is kept from one copy to the next, page-locked where a device copies into it.
        """
        for name, tensor in tensors.items():
            held = self._held.get(name)
            if held is None or held.shape != tensor.shape or held.dtype != tensor.dtype:
                held = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
                self._held[name] = held
            held.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        if any(tensor.is_cuda for tensor in tensors.values()):
            torch.cuda.synchronize()
        return {name: self._held[name] for name in tensors}

    def start(self, work: Callable[[], None]) -> None:
        """Begins the work; `wait` for the one before comes first."""
        if self._thread is not None:
            raise RuntimeError("the work before has not been waited for")
        self._thread = threading.Thread(target=self._do, args=(work,), name="checkpoint")
        self._thread.start()

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            self._failure = error

    def wait(self) -> BaseException | None:
        """Until nothing is under way; what the work failed with, once."""
        if self._thread is not None:
            self._thread.join()
        failure, self._thread, self._failure = self._failure, None, None
        return failure

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        failure = self.wait()
        if failure is not None:
            log.error("a checkpoint could not be written: %s", failure)
