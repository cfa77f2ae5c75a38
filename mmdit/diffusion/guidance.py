"""Guidance: away from what the network says without the condition. Source: arXiv 2207.12598."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import Refused

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Projection:
    """Adaptive projected guidance (2410.02416): less of what over-saturates at large scales. Acts on the data that the
    predictions stand for.

    Args:
        parallel: how much of the difference along the conditional data is kept; 1 keeps all of it, 0 none.
        radius: the longest that the difference of a sample may be; None for any.
        momentum: how much of the former steps' differences is added; the paper's are negative.
    """

    parallel: float = 0.0
    radius: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not _is_number(value) and (name, value) != ("radius", None):
                raise Refused(f"the {name} of projected guidance is no number", got=repr(value)[:60])
        if self.radius is not None and not self.radius > 0:
            raise Refused("the radius of projected guidance is out of range", got=self.radius, expected="above 0")
        if not abs(self.momentum) < 1:
            raise Refused("the momentum of projected guidance is out of range", got=self.momentum, expected="-1 to 1")


@dataclass(frozen=True)
class Guidance:
    """How to guide.

    Args:
        scale: 1 is without guidance.
        channels: only the first so many are guided (the published DiT: 3); None for all of x_t's. Other channels,
            a learned variance among them, are the conditional ones.
        interval: the (lowest, highest) timestep that is guided, None for all (2404.07724).
        rescale: 0 to 1, how far the deviation of each sample is brought back to the conditional one (2305.08891, 3.4).
        projection: adaptive projected guidance in place of the plain rule.
    """

    scale: float = 1.0
    channels: int | None = None
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    projection: Projection | None = None

    def __post_init__(self) -> None:
        if self.channels is not None and self.channels < 1:
            raise Refused("no channels to guide", got=self.channels, expected="1 or more")
        if self.interval is not None:
            _check_interval(self.interval)
        if not _is_number(self.rescale) or not 0 <= self.rescale <= 1:
            raise Refused("the rescaling of guidance is out of range", got=repr(self.rescale)[:60], expected="0 to 1")
        if not isinstance(self.projection, Projection | None):
            raise Refused("not a projection of guidance", got=repr(self.projection)[:60], expected="a Projection")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_interval(interval: object) -> None:
    expected = "(lowest, highest) timestep"
    if not isinstance(interval, tuple | list) or [isinstance(end, int | float) for end in interval] != [True, True]:
        raise Refused("not an interval of guidance", got=repr(interval)[:60], expected=expected)
    if not interval[0] <= interval[1]:
        raise Refused("the interval of guidance is empty", got=interval, expected=expected)


def guided(predict_both: Predict, predict: Predict, guidance: float | Guidance, process: Any = None) -> Predict:
    """A predict(x_t, t) with guidance: null + scale (conditional - null). Make one for each sampling run.

    Args:
        predict_both: takes x_t and t doubled along the batch, the first half conditional, the second half null.
            `two_passes` makes one of two callables.
        predict: takes x_t and t as they are, conditional; used alone at scale 1 and outside of the interval, which
            then cost no second pass.
        guidance: a scale, or all settings.
        process: the flow or diffusion whose predictions these are; projected guidance needs it.
    """
    how = guidance if isinstance(guidance, Guidance) else Guidance(guidance)
    if how.scale == 1.0:
        return predict
    if how.projection is not None and process is None:
        raise ValueError("projected guidance is about data: it needs the process that the predictions belong to")
    combine = _projected(how.scale, how.projection, process) if how.projection else _plain(how.scale)

    def predict_guided(x_t: Tensor, t: Tensor) -> Tensor:
        low, high = how.interval or (-torch.inf, torch.inf)
        time = t if t.ndim == 1 else t.amax(1)  # where frames are given, that of the others
        inside = (time >= low) & (time <= high)  # (batch,)
        if how.interval is not None and not inside.any():
            return predict(x_t, t)
        conditional, null = predict_both(torch.cat([x_t, x_t]), torch.cat([t, t])).chunk(2)
        count = min(how.channels or x_t.shape[1], x_t.shape[1])
        kept, moved = conditional[:, :count], null[:, :count]
        out = combine(kept, moved, x_t[:, :count], time)
        if how.rescale:
            out = out * (1 + how.rescale * (_deviation(kept) / _deviation(out) - 1))  # eq. 15 and 16
        if how.interval is not None:
            out = torch.where(inside.view(-1, *[1] * (x_t.ndim - 1)), out, kept)
        return torch.cat([out, conditional[:, count:]], dim=1)

    return predict_guided


def two_passes(predict: Predict, predict_null: Predict) -> Predict:
    """A `predict_both` that asks twice, with half the memory of one doubled batch."""

    def predict_both(x_t: Tensor, t: Tensor) -> Tensor:
        (x_t, x_null), (t, t_null) = x_t.chunk(2), t.chunk(2)
        return torch.cat([predict(x_t, t), predict_null(x_null, t_null)])

    return predict_both


Combine = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _plain(scale: float) -> Combine:
    return lambda conditional, null, x_t, t: null + scale * (conditional - null)


def _projected(scale: float, how: Projection, process: Any) -> Combine:
    former: Tensor | None = None
    time = torch.inf

    def combine(conditional: Tensor, null: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        nonlocal former, time
        p, q = process.data_coefficients(t, x_t)  # data = p x_t + q prediction
        data, difference = p * x_t + q * conditional, q * (conditional - null)
        if how.momentum:
            if former is not None and t.max() <= time:  # otherwise another run has begun
                difference = difference + how.momentum * former
            former, time = difference, float(t.max())
        if how.radius is not None:
            difference = difference * (how.radius / _norm(difference)).clamp(max=1)
        direction = data / _norm(data)
        along = (difference * direction).flatten(1).sum(1).view_as(p) * direction
        update = difference - along + how.parallel * along
        return conditional + (scale - 1) * update / q

    return combine


def _norm(x: Tensor) -> Tensor:
    """The length of each sample, (batch, 1, ...), never zero."""
    return x.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))


def _deviation(x: Tensor) -> Tensor:
    """The standard deviation over each sample, (batch, 1, ...), never zero."""
    return x.flatten(1).std(dim=1).clamp(min=1e-12).view(-1, *[1] * (x.ndim - 1))
