"""The processes that share the work of one call, as torchrun or accelerate start them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from mmdit import files
from mmdit.errors import Refused
from mmdit.training.processes import hold_together

LONGEST_WAIT = timedelta(days=30)  # for the slowest one's part


@dataclass(frozen=True)
class Group:
    """This process among `count`; `device` is the name of its device, `state` accelerate's (None: it is alone)."""

    index: int
    count: int
    device: str
    state: Any = None

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def wait(self) -> None:
        """Until all processes are here."""
        if self.state is not None:
            self.state.wait_for_everyone()

    @contextmanager
    def hold(self, folder: Path) -> Iterator[None]:
        """Holds `folder` for these processes alone; Refused, on all of them, where another call holds it."""
        with files.lock(folder) if self.state is None else hold_together(folder, self.state):
            yield


@contextmanager
def process_group(device: str = "auto") -> Iterator[Group]:
    """Finds the other processes, where a launcher started several, and one device for each.

    Raises Refused where they do not find each other.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Group(0, 1, device)
        return
    from accelerate import PartialState

    cpu = device == "cpu" or not torch.accelerator.is_available()
    PartialState._reset_state()
    state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    if state.num_processes != count:
        raise Refused("the launcher's processes do not find each other", got=state.num_processes, expected=count)
    try:
        yield Group(state.process_index, count, str(state.device) if device == "auto" else device, state)
    finally:
        state.destroy_process_group()
