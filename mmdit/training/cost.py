"""Where the time of a training step goes: the run itself, with a clock around each part."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
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
WARM_UP = 3  # first steps that are slower: kernels are chosen, files come from the disk
PARTS = {
    WAITING: (loop, "_next"), "forward and backward": (loop, "_backward"),
    "gradient norm": (loop, "_gradient_norm"), "finite or not": (loop, "_judge"), "clipping": (loop, "_clip"),
    "averages": (EMA, "update"), "log": (loop, "_log"), "checkpoint": (loop, "save"),
}  # fmt: skip
EACH_STEP = (*MODEL, *(name for name in PARTS if name not in (*MODEL, "checkpoint")))


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
    tokens_per_s: float
    """Over all steps."""
    flops_per_s: float
    """The network's operations over all steps; a multiply-accumulate counts as two."""
    memory: int
    """Most bytes that the process, or its GPU, held until then."""
    device: str
    """cpu, cuda:0, ..."""


def measure_loop(config: RunConfig, folder: Path, steps: int, *, plain: bool = False) -> LoopCost:
    """Trains `steps` steps of the recipe into a folder that is not there yet.

    Args:
        plain: in float32, without any of what makes a step quicker on a CPU.

    Raises:
        Refused: what `train` refuses.
    """
    clock, spread = _Clock(), config.checkpoint_every
    steps += WARM_UP
    changes = {"steps": steps, "checkpoint_every": steps, "validate_every": steps + 1, "samples": None}
    config = config.model_copy(update=changes | ({"precision": "float32"} if plain else {}))
    with _as_one_would_write_it() if plain else nullcontext(), _clocked(clock):
        loop.train(config, folder, progress=clock.step_done)
    checkpoint, seen = clock.spent["checkpoint"] / spread, clock.seen[WARM_UP:]
    for step in seen:
        step["rest"] = step["step"] - sum(step[name] for name in EACH_STEP)
    middle = {name: statistics.median(step[name] for step in seen) for name in (*EACH_STEP, "rest", "step")}
    own = statistics.median(1 - sum(step[name] for name in MODEL) / step["step"] for step in seen)
    whole = middle.pop("step") + checkpoint
    seconds = sum(step["step"] for step in seen)
    tokens, flops = (sum(size) / seconds for size in zip(*clock.sizes[WARM_UP:], strict=True))
    run = clock.run
    assert run is not None
    return LoopCost(
        whole, {**middle, "checkpoint": checkpoint}, 1 - (1 - own) * (1 - checkpoint / whole), run.config.precision,
        tuple(dict.fromkeys(f"{n} x {'x'.join(map(str, shape))}" for n, *shape in clock.shapes[WARM_UP:])),
        tokens, flops, memory_held(run.accelerator.device), str(run.accelerator.device),
    )  # fmt: skip


class _Clock:
    """`spent`: seconds by part since the last step. `seen`: the same of each step, with "step" for all of it.
    `shapes`, `sizes`: of its batch, and the tokens and operations in it."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.spent: dict[str, float] = defaultdict(float)
        self.seen: list[dict[str, float]] = []
        self.shapes: list[tuple[int, ...]] = []
        self.sizes: list[tuple[int, int]] = []
        self.last = time.perf_counter()

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*given, **named)
            finally:
                self.spent[name] += time.perf_counter() - began

        return call

    def step_done(self, *_: object) -> None:
        now = time.perf_counter()
        self.seen.append(defaultdict(float, self.spent, step=now - self.last))
        self.spent.clear()
        self.last = now


@contextmanager
def _clocked(clock: _Clock) -> Iterator[None]:
    """Inside, the loop runs with a clock around each part, and does not validate."""
    plain_begin, plain_end = loop.begin_run, Meter.end

    def begin(*given: Any) -> Run:
        clock.run = plain_begin(*given)
        for one in clock.run.optimizers:
            one.step = clock.around("optimizer step", one.step)  # type: ignore[method-assign]
        return clock.run

    def end(meter: Meter, latents: torch.Size) -> None:
        clock.shapes.append(tuple(latents))
        clock.sizes.append(meter.size_of(latents))
        plain_end(meter, latents)

    with ExitStack() as clocks:
        clocks.enter_context(patch.object(loop, "begin_run", begin))
        clocks.enter_context(patch.object(Meter, "end", end))
        clocks.enter_context(patch.object(loop, "held_out", lambda *_: {}))
        for name, (owner, attribute) in PARTS.items():
            clocks.enter_context(patch.object(owner, attribute, clock.around(name, getattr(owner, attribute))))
        yield


@contextmanager
def _as_one_would_write_it() -> Iterator[None]:
    """Inside, nothing makes a step quicker on a CPU."""
    adamw = torch.optim.AdamW

    def not_fused(weights: Any, **options: Any) -> torch.optim.Optimizer:
        return adamw(weights, **{**options, "fused": False})

    with (
        plain_kernels(),
        patch.object(loop, "keep_freed_memory", partial(keep_freed_memory, False)),
        patch.object(torch.optim, "AdamW", not_fused),
        patch.object(optimizer, "Muon", torch.optim.Muon),
    ):
        yield


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
