"""The processes of one run: how they find each other, hold the folder together, and decide alike."""

import atexit
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import broadcast_object_list, gather_object, parse_flag_from_env

from mmdit import files
from mmdit.errors import Refused
from mmdit.training.config import RunConfig
from mmdit.training.sharding import check_sharding, is_sharded


def make_accelerator(config: RunConfig) -> Accelerator:
    """Finds the device, and the other processes where a launcher started several; `config` says the precision.

    float16 stays outside of accelerate: its scaler would unscale the gradients of a second optimizer twice.

    Raises:
        Refused: float16 where there is no CUDA device, the batch does not divide over the processes, these do not
            find each other or differ in precision, or something in the recipe does not go with sharding.
    """
    AcceleratorState._reset_state()  # an earlier run of this process may have had another precision
    # Without `cpu`, accelerate takes each process for one of its own where there is no accelerator.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    accelerator = Accelerator(mixed_precision=_mixed_precision(config.precision), cpu=cpu)
    atexit.unregister(_end_group)
    atexit.register(_end_group)
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != count:
        raise Refused("the launcher's processes do not find each other", got=accelerator.num_processes, expected=count)
    _check_alike(accelerator)
    if config.precision == "float16" and not can_float16(accelerator.device):
        raise Refused(
            "float16 needs a CUDA device", got=f"precision=float16 on {accelerator.device.type}",
            fix="set precision=auto, which is bfloat16 or float32",
        )  # fmt: skip
    if is_sharded(config, accelerator):
        check_sharding(config)
    check_batches([config.data.batch_size], count)
    return accelerator


def check_batches(batch_sizes: Iterable[int], processes: int) -> None:
    """Refused where the batch of some shape of clips does not divide over the processes."""
    for size in batch_sizes:
        if size % processes:
            raise Refused(
                "the batch does not divide over the processes", got=f"{size} clips on {processes} processes",
                expected="a multiple of the number of processes",
                fix="set data.batch_size to one, and with data.batch_by=cost data.batch_multiple too",
            )  # fmt: skip


def can_float16(device: torch.device) -> bool:
    """A CPU computes float16 products many times slower than float32 ones."""
    return device.type == "cuda"


def _mixed_precision(precision: str) -> str:
    return "bf16" if precision == "bfloat16" else "no"


def _end_group() -> None:
    """Ends the processes' group while there still is an interpreter: before it goes away, however it came to that.

    A thread of gloo may yet hold the tensors of the last exchange. One that lets go of them later aborts the process,
    and its exit code with it.
    """
    if dist.is_initialized():
        gc.collect()  # what refers to the group in circles
        dist.destroy_process_group()  # waits for its threads, unless something still refers to it
        time.sleep(0.1)  # for these: DTensor's caches always do


def _check_alike(accelerator: Accelerator) -> None:
    """Refused where processes, each on its own device, have chosen different precisions."""
    if accelerator.num_processes > 1:
        chosen = gather_object([accelerator.mixed_precision])
        if len(set(chosen)) > 1:
            raise Refused(
                "the processes' devices are not quick at the same precision", got=", ".join(chosen),
                fix="set precision=bfloat16 or precision=float32",
            )  # fmt: skip


@contextmanager
def hold_together(folder: Path, accelerator: Accelerator) -> Iterator[None]:
    """Holds `folder` for the processes of this run alone.

    Raises:
        Refused: on all of them, where another run holds it.
    """
    with ExitStack() as held:
        refusal: Refused | None = None
        if accelerator.is_main_process:
            try:
                lock = held.enter_context(files.lock(folder))
                if accelerator.num_processes > 1:
                    lock.share()
            except Refused as error:
                refusal = error
        (refusal,) = broadcast_object_list([refusal])
        if refusal is not None:
            raise refusal
        if not accelerator.is_main_process:
            held.enter_context(files.lock(folder, shared=True))
        yield


def on_any(accelerator: Accelerator, flag: bool) -> bool:
    """Whether the flag is up on at least one process; the same answer on all."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)


@contextmanager
def until_sigterm() -> Iterator[Callable[[], bool]]:
    """While inside, a first SIGTERM is remembered, to be asked for; a second one ends the process at once."""
    wanted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield wanted.is_set
        return

    def remember(*_: object) -> None:
        wanted.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    before = signal.signal(signal.SIGTERM, remember)
    try:
        yield wanted.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
