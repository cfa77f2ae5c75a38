"""How the time and the memory of a training step grow with tokens, frames, clips and depth."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmdit.models import PRESETS, model_cost
from mmdit.training.allocator import keep_freed_memory
from mmdit.training.build import Inputs
from mmdit.training.config import RunConfig
from mmdit.training.memory import StepInputs, TrainingStep, measure_peak

CHANNELS, LABELS = 4, 10
RUNS = 3  # of a step, after a first one that finds its memory, where that takes less than
LONG = 60.0  # seconds; a longer one is timed once, at the first time
FITTED = 4096  # tokens: the predictions are fitted to points of so many at most, and drawn through to the end


@dataclass(frozen=True)
class Case:
    """One training step: `series` is the curve that it is a point of, `along` what grows along that curve, and `grid`
    (frames, height, width) that of the latents."""

    series: str
    along: str
    layout: str
    grid: tuple[int, int, int]
    clips: int = 1
    depth: int = 1


@dataclass(frozen=True)
class Point:
    """What a case took.

    `at`: the value along the curve. `seconds`: of a whole step, a median. `memory`: most bytes at one time.
    `parameters`: of the network, which the optimizer goes over. `linear`, `attention`: multiply-accumulates of a
    forward pass, apart: those that grow with the tokens, and those of attention, which grow as T S^2 + S T^2 in the
    factorised layout and as (T S)^2 in the joint one.
    """

    case: Case
    at: int
    tokens: int
    seconds: float
    memory: int
    parameters: int
    linear: int
    attention: int


def growth_cases(preset: str, most_tokens: int) -> Iterator[Case]:
    """Frames of 256 tokens, 1 to 256 of them, in two layouts; one frame of 256 tokens and more; clips; blocks."""
    patch = PRESETS[preset]["patch_size"][-1]
    side = 16 * patch  # 256 tokens
    for layout in ("factorized", "joint"):
        for frames in (1, 4, 16, 64, 256):
            if 256 * frames <= most_tokens:
                yield Case(f"{layout}, frames of 256 tokens", "frames", layout, (frames, side, side))
    for factor in (1, 2, 4, 8, 16):
        if 256 * factor**2 <= most_tokens:
            yield Case("space, one frame", "tokens", "space", (1, factor * side, factor * side))
    for clips in (1, 2, 4, 8, 16):
        yield Case("clips of one frame", "clips", "space", (1, side, side), clips=clips)
    for depth in (1, 2, 4, 8, 12):
        yield Case("blocks", "blocks", "space", (1, side, side), depth=depth)


def measure(case: Case, preset: str, precision: str) -> Point:
    """Does the step on this machine's CPU, with freed memory kept, as in training."""
    keep_freed_memory()
    model = {"preset": preset, "layout": case.layout, "depth": case.depth}
    config = RunConfig.model_validate(
        {"steps": 1, "data": {"store": ""}, "conditions": {"labels": True}, "model": model}
    )
    inputs = Inputs((CHANNELS, *case.grid), LABELS)
    step = TrainingStep(config, StepInputs(inputs), precision, on_gpu=False)
    batch = step.batch(case.clips)

    def whole_step() -> None:
        step.part(batch)
        step.update()
        step.forget()

    seconds = [_seconds(whole_step)]
    if seconds[0] < LONG:
        seconds = [_seconds(whole_step) for _ in range(RUNS)]
    memory = measure_peak(step, batch, whole_step, share=case.clips)
    attention = _attention_macs(case, step.trainee.transformer.config) * case.clips
    cost = model_cost(step.trainee.transformer.config, case.grid)
    tokens = _tokens(case, step.trainee.transformer.config)
    at = {"frames": case.grid[0], "tokens": tokens, "clips": case.clips, "blocks": case.depth}[case.along]
    linear = cost.macs * case.clips - attention
    return Point(case, at, tokens, statistics.median(seconds), memory, cost.parameters, linear, attention)


def _seconds(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _tokens(case: Case, network: Any) -> int:
    """Of a clip."""
    return math.prod(size // patch for size, patch in zip(case.grid, network.patch_size, strict=True))


def _attention_macs(case: Case, network: Any) -> int:
    """Of a clip: the products of queries and keys, and of weights and values."""
    frames, tokens = case.grid[0] // network.patch_size[0], _tokens(case, network)
    space = tokens // frames
    pairs = {
        "space": frames * space**2, "joint": tokens**2,
        "factorized": frames * space**2 + (space * frames**2 if frames > 1 else 0),
    }[case.layout]  # fmt: skip
    return int(2 * pairs * network.hidden_size * case.depth)


@dataclass(frozen=True)
class Prediction:
    """seconds = start + parameters * update + linear MACs * linear + attention MACs * attention."""

    start: float
    update: float
    linear: float
    attention: float

    def seconds(self, point: Point) -> float:
        return float(np.dot([self.start, self.update, self.linear, self.attention], _terms(point)))


def _terms(point: Point) -> list[float]:
    return [1.0, point.parameters, point.linear, point.attention]


def fit(points: Sequence[Point]) -> Prediction:
    """The constants, none below 0, from the points of FITTED tokens or fewer: the least squares of relative errors."""
    few = [point for point in points if point.tokens * point.case.clips <= FITTED]
    rows = np.array([_terms(point) for point in few]) / np.array([[point.seconds] for point in few])
    kept = [column for column in range(rows.shape[1]) if rows[:, column].any()]
    while True:  # the constant that is most below 0 is left out
        size = np.abs(rows[:, kept]).max(0)
        scaled = np.linalg.lstsq(rows[:, kept] / size, np.ones(len(few)), rcond=None)[0]
        if (scaled >= 0).all():
            break
        del kept[int(scaled.argmin())]
    values = dict(zip(kept, (scaled / size).tolist(), strict=True))
    return Prediction(*(float(values.get(column, 0.0)) for column in range(rows.shape[1])))


def crossing(points: Sequence[Point]) -> float | None:
    """Tokens from which on the joint layout takes longer than the factorised one: between measured points on
    logarithmic scales, or the fewest that were measured; None where it never does. One frame has no time attention."""
    curves = [{p.tokens: p.seconds for p in points if p.case.layout == layout and p.case.grid[0] > 1}
              for layout in ("factorized", "joint")]  # fmt: skip
    shared = sorted(curves[0].keys() & curves[1].keys())
    gaps = [(math.log(tokens), math.log(curves[1][tokens] / curves[0][tokens])) for tokens in shared]
    longer = [number for number, (_, gap) in enumerate(gaps) if gap > 0]
    if not longer:
        return None
    (right, above), before = gaps[longer[0]], gaps[: longer[0]]
    if not before:
        return math.exp(right)
    left, below = before[-1]
    return math.exp(left + (right - left) * -below / (above - below))
