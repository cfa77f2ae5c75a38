"""How fast a whole training step is, from latents: each way of computing it beside the others, in turns.

A step is forward, mean squared error, backward and AdamW, on tensors that are on the device already.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F

from mmdit.models import model_cost
from mmdit.models.cpu_kernels import KERNELS
from mmdit.models.presets import preset_options
from mmdit.training.memory import DTYPES, most_held
from mmdit.training.speed_step import Trained
from mmdit.training.speed_ways import Case, Way, options

PRODUCTS = ((1024, 384, 1536), (2048, 2048, 2048))  # rows, inputs, outputs of what the device's rate is measured on
ROOM = 2 * 10**10  # operations that a product is timed over on a CPU; 500 times as many on a GPU
PRODUCTS_CUDA = ((16384, 1152, 4608), (8192, 8192, 8192))


@dataclass
class Result:
    """Seconds of each run, and those that this process was on a core; most bytes at one time, weights and optimizer
    included; `error` where it cannot run."""

    way: Way
    flops: int
    seconds: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    memory: int = 0
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def ways(case: Case, device: str) -> Iterator[Way]:
    """All that there is to compare: peers, the plain loop, ours, and ours without each thing that makes it quicker."""
    depth, on_cpu = preset_options(case.preset)["depth"], device == "cpu"
    peers = {"diffusers DiT": depth}
    if case.grid[0] > 1:  # its depth counts pairs of blocks: as many attentions as ours, or as many MLPs
        peers = {f"diffusers Latte, {blocks}+{blocks} blocks": blocks for blocks in (depth, depth // 2)}
    for precision in ("float32", "bfloat16"):
        for name, blocks in peers.items():
            yield Way(f"{name}, {precision}", precision, peer=blocks, fused=False, keeps_memory=False)
        yield Way(f"plain eager, {precision}", precision, plain=KERNELS, fused=False, keeps_memory=False)
        ours = f"mmdit, {precision}"
        yield Way(ours, precision)
        for kernel in KERNELS if on_cpu else ():
            yield Way(f"{ours}, plain {kernel}", precision, plain=(kernel,))
        if on_cpu:
            yield Way(f"{ours}, freed memory given back", precision, keeps_memory=False)
        yield Way(f"{ours}, AdamW not fused", precision, fused=False)
        for backend in ("math", "sdpa") if on_cpu else ("math", "sdpa", "xformers"):
            yield Way(f"{ours}, attention by {backend}", precision, backend=backend)
        yield Way(f"{ours}, checkpointing", precision, checkpointing=1)
        for compiled in ("blocks", "whole", "graphs"):
            yield Way(f"{ours}, compiled {compiled}", precision, compiled=compiled)


def measure(case: Case, chosen: Sequence[Way], device: str, runs: int) -> list[Result]:
    """Each way `runs` times, in turns, so that a slow minute slows all; a first time is left out. The results of the
    device's own products, as ways of their own, come first."""
    trained = Trained(case, torch.device(device))
    results = [Result(way, _flops(case, way)) for way in chosen]
    work: list[tuple[Result, Callable[[], None]]] = []
    for precision in dict.fromkeys(way.precision for way in chosen):
        for shape in PRODUCTS if device == "cpu" else PRODUCTS_CUDA:
            work.append(_product(shape, precision, device))
    for number in range(runs + 1):
        for result, run in work:
            _time(result, run, device, keep=number > 0)
        for result in results:
            if not result.error:
                _time(result, partial(trained.step, result.way), device, keep=number > 0, before=trained.prepare)
    for result in results:
        if not result.error:
            result.memory = trained.stays(result.way) + peak_over(partial(trained.step, result.way), device)
    return [result for result, _ in work] + results


def _time(
    result: Result, run: Callable[[], None], device: str, *, keep: bool, before: Callable[[Way], None] | None = None
) -> None:
    try:
        if before is not None:
            before(result.way)
        began, busy = time.perf_counter(), time.process_time()
        run()
        if device != "cpu":
            torch.cuda.synchronize(device)
        seconds, busy = time.perf_counter() - began, time.process_time() - busy
    except Exception as error:  # a kernel or a compiler that is not there, or no memory: a line of the table
        result.error = (str(error).strip() or type(error).__name__).splitlines()[0]
        return
    if keep:
        result.seconds.append(seconds)
        result.busy.append(busy)


def _product(shape: tuple[int, int, int], precision: str, device: str) -> tuple[Result, Callable[[], None]]:
    """A product of these rows, inputs and outputs, as often as takes a while."""
    rows, inputs, outputs = shape
    times = max(1, (ROOM if device == "cpu" else 500 * ROOM) // (2 * rows * inputs * outputs))
    x, weight = (torch.randn(n, inputs, device=device, dtype=DTYPES[precision]) for n in (rows, outputs))

    def run() -> None:
        for _ in range(times):
            F.linear(x, weight)

    name = f"product {rows}x{inputs}x{outputs}, {precision}"
    return Result(Way(name, precision), times * 2 * rows * inputs * outputs), run


def _flops(case: Case, way: Way) -> int:
    """Of a step; diffusers' Latte has an MLP for each attention, as the alternating layout has."""
    if way.peer is None or case.grid[0] == 1:
        return case.flops
    latte = {**options(case), "layout": "alternating", "depth": 2 * way.peer}
    return 3 * 2 * case.batch * model_cost(latte, case.grid).macs


def peak_over(run: Callable[[], None], device: str) -> int:
    """Most bytes over what there was before, while `run` runs."""
    if device == "cpu":
        return most_held(run)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
