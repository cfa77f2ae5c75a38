"""Where the time of a training step goes: the run itself, with a clock around each part."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmdit.models.cpu_kernels import plain_kernels
from mmdit.training import loop, optimizer
from mmdit.training.allocator import keep_freed_memory
from mmdit.training.config import RunConfig
from mmdit.training.data import TrainingData
from mmdit.training.ema import EMA
from mmdit.training.meter import Meter, memory_held
from mmdit.training.run import Run
from mmdit.training.sources import Sources

MODEL = ("forward and backward", "optimizer step")
WAITING = "waiting for the batch"  # which is made while the step before is computed
_ADAMW = torch.optim.AdamW
WARM_UP = 3  # first steps that are slower: kernels are chosen, files come from the disk


@dataclass(frozen=True)
class LoopCost:
    """Seconds of a step, medians over the steps of a run; validation is left out.

    `parts`: by what was done, those in `MODEL` first. "checkpoint" is the writing of one, spread over the steps from
    one to the next as the recipe has them. "rest" is what no clock was around.
    """

    step: float
    parts: dict[str, float]
    own_share: float
    """Of the step: what is neither forward, backward nor optimizer step."""
    precision: str
    batches: tuple[str, ...]
    """Shapes of the latents in them, without repeats, as "32 x 12x9x8x6"."""
    tokens: float
    """A step, on average."""
    flops: float
    """Operations of the network in a step, on average; a multiply-accumulate counts as two."""
    memory: int
    """Most bytes that the process, or its GPU, held until then."""


def measure_loop(config: RunConfig, folder: Path, steps: int, *, plain: bool = False) -> LoopCost:
    """Trains `steps` steps of the recipe into a folder that is not there yet.

    Args:
        plain: in float32, without any of what makes a step quicker on a CPU.

    Raises:
        Refused: what `train` refuses.
    """
    spent: dict[str, float] = defaultdict(float)
    seen: list[dict[str, float]] = []
    last = time.perf_counter()

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    def begin(*given: Any) -> Run:
        run = plain_begin(*given)
        begun.append(run)
        for one in run.optimizers:
            one.step = clocked("optimizer step", one.step)  # type: ignore[method-assign]
        return run

    def end(meter: Meter, latents: torch.Size) -> None:
        shapes.append(tuple(latents))
        sizes.append(meter.size_of(latents))
        plain_end(meter, latents)

    def step_done(*_: object) -> None:
        nonlocal last
        now = time.perf_counter()
        seen.append(defaultdict(float, spent, step=now - last))
        spent.clear()
        last = now

    begun: list[Run] = []
    shapes: list[tuple[int, ...]] = []
    sizes: list[tuple[int, int]] = []
    plain_begin, plain_end, spread = loop.begin_run, Meter.end, config.checkpoint_every
    steps += WARM_UP
    changes = {"steps": steps, "checkpoint_every": steps, "validate_every": steps + 1, "samples": None}
    config = config.model_copy(update=changes | ({"precision": "float32"} if plain else {}))
    parts = {
        WAITING: (loop, "_next"), "forward and backward": (loop, "_backward"),
        "gradient norm": (loop, "_gradient_norm"), "finite or not": (loop, "_judge"), "clipping": (loop, "_clip"),
        "averages": (EMA, "update"), "log": (loop, "_log"), "checkpoint": (loop, "save"),
    }  # fmt: skip
    with ExitStack() as clocks:
        if plain:
            clocks.enter_context(plain_kernels())
            clocks.enter_context(patch.object(loop, "keep_freed_memory", partial(keep_freed_memory, False)))
            clocks.enter_context(patch.object(torch.optim, "AdamW", _not_fused))
            clocks.enter_context(patch.object(optimizer, "Muon", torch.optim.Muon))
        clocks.enter_context(patch.object(loop, "begin_run", begin))
        clocks.enter_context(patch.object(Meter, "end", end))
        clocks.enter_context(patch.object(loop, "held_out", lambda *_: {}))
        for name, (owner, attribute) in parts.items():
            clocks.enter_context(patch.object(owner, attribute, clocked(name, getattr(owner, attribute))))
        loop.train(config, folder, progress=step_done)
    checkpoint = spent["checkpoint"] / spread
    names = (*MODEL, *(name for name in parts if name not in (*MODEL, "checkpoint")))
    for step in seen:
        step["rest"] = step["step"] - sum(step[name] for name in names)
    middle = {name: statistics.median(step[name] for step in seen[WARM_UP:]) for name in (*names, "rest", "step")}
    own = statistics.median(1 - sum(step[name] for name in MODEL) / step["step"] for step in seen[WARM_UP:])
    whole = middle.pop("step") + checkpoint
    shapes, sizes = shapes[WARM_UP:], sizes[WARM_UP:]
    return LoopCost(
        whole, {**middle, "checkpoint": checkpoint}, 1 - (1 - own) * (1 - checkpoint / whole),
        begun[0].config.precision, tuple(dict.fromkeys(f"{n} x {'x'.join(map(str, shape))}" for n, *shape in shapes)),
        statistics.mean(tokens for tokens, _ in sizes), statistics.mean(flops for _, flops in sizes),
        memory_held(begun[0].accelerator.device),
    )  # fmt: skip


def _not_fused(weights: Any, **options: Any) -> torch.optim.Optimizer:
    return _ADAMW(weights, **{**options, "fused": False})


def measure_loading(config: RunConfig, steps: int) -> list[float]:
    """Seconds of each of the first `steps` batches of the recipe, read with nothing else going on."""
    data = TrainingData(Sources.open(config.data), config.data.split, config)
    seconds = []
    for step in range(steps + WARM_UP):
        began = time.perf_counter()
        data.batch(step, range(data.batch_size(step)))
        seconds.append(time.perf_counter() - began)
    return seconds[WARM_UP:]


class _Clips(Dataset[Tensor]):
    """What one would write without mmdit: one clip of the largest shape at a time, its latent drawn as it is read."""

    def __init__(self, config: RunConfig) -> None:
        self.sources = Sources.open(config.data)
        self.pool = self.sources.main_pool(config.data.split)

    def __len__(self) -> int:
        return self.pool.group.count

    def __getitem__(self, number: int) -> Tensor:
        (latent,) = self.sources.latents([(self.pool.source, self.pool.group.first + number)])
        mean, std = latent if latent is not None else torch.zeros(2, *self.pool.latent)
        return mean.float() + std.float() * torch.randn(mean.shape)


def measure_plain_loading(config: RunConfig, steps: int) -> list[float]:
    """The same by torch's DataLoader in this process, without captions, labels, times and anything that repeats."""
    loader = DataLoader(_Clips(config), config.data.batch_size, shuffle=True, drop_last=True)
    seconds: list[float] = []
    while len(seconds) < steps + WARM_UP:
        began = time.perf_counter()
        for _ in loader:
            seconds.append(time.perf_counter() - began)
            began = time.perf_counter()
    return seconds[WARM_UP : steps + WARM_UP]
