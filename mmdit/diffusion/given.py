"""What a process does at given frames: no noise, the timestep of clean data, and no part in the loss.

Shapes: x (B, C, F, H, W); `given` (B, F), True at given frames; times (B,).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Given:
    """Given frames of a batch that is sampled: `mask` (B, F), `latents` (B, C, F, H, W), of which only those frames are
    looked at."""

    mask: Tensor
    latents: Tensor


def hold(x_t: Tensor, x_0: Tensor, given: Tensor | None) -> Tensor:
    """x_t, with x_0 at the given frames."""
    return x_t if given is None else torch.where(given[:, None, :, None, None], x_0.to(x_t.dtype), x_t)


def frame_times(t: Tensor, given: Tensor | None) -> Tensor:
    """A time a frame, (B, F): 0 at the given ones. (B,) as it was without given frames."""
    return t if given is None else torch.where(given, torch.zeros_like(t)[:, None], t[:, None])


def mean_of_others(x: Tensor, given: Tensor | None) -> Tensor:
    """(B,): the mean of each sample over what is not given, of which there must be some."""
    if given is None:
        return x.flatten(1).mean(1)
    others = (~given).to(x.dtype)
    return (x.mean((1, 3, 4)) * others).sum(1) / others.sum(1)


def guided_by_given(
    predict: Predict, predict_alone: Predict, given: Given, noise: Tensor, process: Any, scale: float
) -> Predict:
    """A predict(x_t, t) that also moves away from what the network says when no frame is given.

    predict + (scale - 1) (with - without), all else alike in both; t is one a frame, (B, F).

    Args:
        predict: with the frames given, and with whatever other guidance.
        predict_alone: takes x_t and t doubled along the batch; without other guidance.
        noise: of x_t, (B, C, F, H, W): without being given, the same frames are as noisy as the others.
        process: the flow or diffusion that adds it.
        scale: 1 is `predict` itself, at no further cost.
    """
    if scale == 1:
        return predict

    def predict_guided(x_t: Tensor, t: Tensor) -> Tensor:
        time = t.amax(1)  # of the frames that are not given
        noisy = process.add_noise(given.latents.to(x_t), noise.to(x_t), process.from_timesteps(time))
        both = predict_alone(torch.cat([x_t, hold(x_t, noisy, given.mask)]), torch.cat([t, time[:, None].expand_as(t)]))
        held, free = both.chunk(2)
        return predict(x_t, t) + (scale - 1) * (held - free)

    return predict_guided
