"""Sampling with fewer products: what blocks computed at one step is taken again at the next.

Nothing in a network changes: while it is asked, some of its modules are replaced by ones that remember, and put back
after. What is remembered belongs to one sampling run (`start`) and to one part of it, so nothing leaks between calls,
clips or the halves of guidance.

Shapes: B batch, f token frames, S tokens a frame, D width.
Sources: arXiv 2408.12588 (pyramid attention broadcast); 2411.19108 and ParaAttention's first-block cache.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mmdit.errors import Refused
from mmdit.models.block import Block
from mmdit.models.dit import DiT
from mmdit.models.told import Told

KINDS = ("space", "time", "joint", "cross")

Ask = Callable[..., Tensor]
"""ask(part, latents, timesteps, **inputs): the network's answer. A part is a batch that goes through all steps: "both"
halves of guidance in one, or "conditional" and "null" by themselves; "null" is asked after "conditional"."""


class Cache(Protocol):
    """A way of remembering."""

    def start(self, network: DiT) -> Ask:
        """The network for one sampling run, with nothing remembered."""


@dataclass(frozen=True)
class Broadcast:
    """The outputs of attentions are taken again for some steps, in the middle of the schedule.

    Args:
        every: by kind of attention ("space", "time", "joint", "cross") after how many steps it is computed anew: 1, as
            for kinds that are not named, is at every step.
        interval: the (lowest, highest) timestep of the middle; outside of it all is computed.
    """

    every: Mapping[str, int]
    interval: tuple[float, float] = (100.0, 900.0)

    def __post_init__(self) -> None:
        for kind, steps in self.every.items():
            if kind not in KINDS:
                raise Refused("no such attention to broadcast", got=repr(kind), expected=" or ".join(KINDS))
            if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
                raise Refused(f"the steps of {kind} attention are out of range", got=repr(steps), expected="1 or more")
        if not self.interval[0] <= self.interval[1]:
            raise Refused("the interval of the broadcast is empty", got=self.interval, expected="(lowest, highest)")

    def start(self, network: DiT) -> Ask:
        run = _Run()
        remembering = [
            (block, name, _Broadcaster(getattr(block, name), self.every.get(kind, 1), run))
            for block in network.blocks
            for name, kind in attentions(block).items()
        ]

        def ask(part: str, latents: Tensor, timesteps: Tensor, **inputs: Any) -> Tensor:
            low, high = self.interval
            run.begin(part)
            run.inside = low <= float(timesteps.max()) <= high  # frames that are given stand at 0
            with _replaced(remembering):
                answer: Tensor = network(latents, timesteps, **inputs)
            return answer

        return ask


@dataclass(frozen=True)
class FirstBlockCache:
    """Where the first block adds nearly what it added when all blocks were last computed, the others add what they
    added then. Each sample is judged by itself, so that a clip does not depend on the batch it is in.

    Args:
        threshold: how much the first block's part may change, mean |change| / mean |part|; 0 computes everything.
    """

    threshold: float

    def __post_init__(self) -> None:
        if isinstance(self.threshold, bool) or not 0 <= self.threshold < math.inf:
            raise Refused("the threshold of the first-block cache is out of range", got=self.threshold, expected="0 up")

    def start(self, network: DiT) -> Ask:
        if len(network.blocks) < 2:
            raise Refused("a network of one block has nothing to skip", expected="2 blocks or more")
        run = _Run()
        parts = _Parts(run, self.threshold)
        halves = nn.ModuleList([_First(network.blocks[0], parts), _Others(network.blocks[1:], parts)])

        def ask(part: str, latents: Tensor, timesteps: Tensor, **inputs: Any) -> Tensor:
            run.begin(part)
            with _replaced([(network, "blocks", halves)]):
                answer: Tensor = network(latents, timesteps, **inputs)
            return answer

        return ask


def attentions(block: nn.Module) -> dict[str, str]:
    """The attentions of a block, and their kinds: {"attn": "space", ...}."""
    assert isinstance(block, Block)
    found = {"attn": block.parts[0]}
    if block.has_second_time:
        found["time_attn"] = "time"
    if "cross" in block.parts:
        found["cross_attn"] = "cross"
    return found


@contextmanager
def _replaced(modules: Sequence[tuple[nn.Module, str, nn.Module]]) -> Iterator[None]:
    """While inside, (parent, name, module): the parent has this module by that name."""
    before = [getattr(parent, name) for parent, name, _ in modules]
    try:
        for parent, name, module in modules:
            setattr(parent, name, module)
        yield
    finally:
        for (parent, name, _), module in zip(modules, before, strict=True):
            setattr(parent, name, module)


class _Run:
    """Where a sampling run is: the part that is asked, and how often the network was asked before."""

    def __init__(self) -> None:
        self.part, self.number, self.inside = "", 0, True

    def begin(self, part: str) -> None:
        self.part = part
        self.number += part != "null"  # both halves of a step have its number


class _Broadcaster(nn.Module):
    """An attention that says again what it said at most `every` - 1 steps before."""

    def __init__(self, attention: nn.Module, every: int, run: _Run) -> None:
        super().__init__()
        self.attention, self.every, self.run = attention, every, run
        self.said: dict[str, tuple[int, Tensor]] = {}

    def forward(self, *inputs: Any) -> Tensor:
        run = self.run
        if self.every == 1 or not run.inside:
            self.said.pop(run.part, None)
            return self.attention(*inputs)
        at, said = self.said.get(run.part, (-math.inf, None))
        if said is None or run.number - at >= self.every:
            said = self.attention(*inputs)
            self.said[run.part] = run.number, said
        return said


@dataclass
class _Remembered:
    """Of one part of a run, each a row a sample: what the first block and the others added when the others were last
    computed; the samples whose others are to be computed now, None for all; and when it was last asked."""

    first: Tensor
    others: Tensor | None = None
    rows: Tensor | None = None
    number: int = 0


@dataclass
class _Parts:
    run: _Run
    threshold: float
    remembered: dict[str, _Remembered] = field(default_factory=dict)

    def judge(self, added: Tensor) -> None:
        """Decides for each sample whether its other blocks are computed; `added` (B, f, S, D) is the first block's."""
        now, before = self.run, self.remembered.get(self.run.part)
        if before is None or before.number != now.number - 1:  # another part had its turn: too long ago
            self.remembered[now.part] = _Remembered(added, number=now.number)
            return
        change = _size(added - before.first) / _size(before.first).clamp(min=1e-12)  # (B,)
        before.rows, before.number = torch.nonzero(~(change < self.threshold))[:, 0], now.number
        before.first = before.first.index_copy(0, before.rows, added[before.rows])

    @property
    def now(self) -> _Remembered:
        return self.remembered[self.run.part]


class _First(nn.Module):
    def __init__(self, block: nn.Module, parts: _Parts) -> None:
        super().__init__()
        self.block, self.parts = block, parts

    def forward(self, x: Tensor, told: Told, positions: Any) -> Tensor:
        y: Tensor = self.block(x, told, positions)
        self.parts.judge(y - x)
        return y


class _Others(nn.Module):
    def __init__(self, blocks: nn.Module, parts: _Parts) -> None:
        super().__init__()
        self.blocks, self.parts = blocks, parts

    def forward(self, x: Tensor, told: Told, positions: Any) -> Tensor:
        now = self.parts.now
        if now.others is None or now.rows is None or len(now.rows) == len(x):
            y = self._compute(x, told, positions)
            now.others = y - x
            return y
        y, rows = x + now.others, now.rows
        if len(rows):
            few = Told(*(None if value is None else value[rows] for value in told))
            computed = self._compute(x[rows], few, positions)
            y = y.index_copy(0, rows, computed.to(y.dtype))
            now.others = now.others.index_copy(0, rows, (computed - x[rows]).to(now.others.dtype))
        return y

    def _compute(self, x: Tensor, told: Told, positions: Any) -> Tensor:
        for block in self.blocks:  # type: ignore[attr-defined]
            x = block(x, told, positions)
        return x


def _size(x: Tensor) -> Tensor:
    """The mean |x| of each sample, (B,)."""
    return x.abs().float().flatten(1).mean(1)
