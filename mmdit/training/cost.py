"""Where the time of a training step goes: the run itself, with a clock around each part."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from mmdit.training import loop
from mmdit.training.config import RunConfig
from mmdit.training.data import TrainingData
from mmdit.training.ema import EMA
from mmdit.training.run import Run
from mmdit.training.sources import Sources

MODEL = ("forward and backward", "optimizer step")
WAITING = "waiting for the batch"  # which is made while the step before is computed
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


def measure_loop(config: RunConfig, folder: Path, steps: int) -> LoopCost:
    """Trains `steps` steps of the recipe into a folder that is not there yet.

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
        for optimizer in run.optimizers:
            optimizer.step = clocked("optimizer step", optimizer.step)  # type: ignore[method-assign]
        return run

    def step_done(*_: object) -> None:
        nonlocal last
        now = time.perf_counter()
        seen.append(defaultdict(float, spent, step=now - last))
        spent.clear()
        last = now

    plain_begin, spread = loop.begin_run, config.checkpoint_every
    steps += WARM_UP
    config = config.model_copy(update={"steps": steps, "checkpoint_every": steps, "validate_every": steps + 1})
    parts = {
        WAITING: (loop, "_next"), "forward and backward": (loop, "_backward"),
        "gradient norm": (loop, "_gradient_norm"), "finite or not": (loop, "_judge"), "clipping": (loop, "_clip"),
        "averages": (EMA, "update"), "log": (loop, "_log"), "checkpoint": (loop, "save"),
    }  # fmt: skip
    with ExitStack() as clocks:
        clocks.enter_context(patch.object(loop, "begin_run", begin))
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
    return LoopCost(whole, {**middle, "checkpoint": checkpoint}, 1 - (1 - own) * (1 - checkpoint / whole))


def measure_loading(config: RunConfig, steps: int) -> list[float]:
    """Seconds of each of the first `steps` batches of the recipe, read with nothing else going on."""
    data = TrainingData(Sources.open(config.data), config.data.split, config)
    seconds = []
    for step in range(steps + WARM_UP):
        began = time.perf_counter()
        data.batch(step, range(data.batch_size(step)))
        seconds.append(time.perf_counter() - began)
    return seconds[WARM_UP:]
