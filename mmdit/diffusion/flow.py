"""Rectified flow: noise and data joined by a straight line, and a network that predicts its direction.

Source: arXiv 2209.03003; the distributions of times are those of 2403.03206.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.errors import Refused

# The timestep that a network sees is the time in [0, 1] times this, as in diffusers' flow schedulers.
TIMESTEPS = 1000

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlowLoss:
    """What a training step needs: the loss of each sample, float32 (batch,), mean over all other axes."""

    per_sample: Tensor


@dataclass(frozen=True)
class RectifiedFlow:
    """x_t = (1 - t) x_0 + t noise, t in [0, 1]; the velocity dx/dt = noise - x_0 is what is predicted.

    Args:
        times: "logit-normal" (t = sigmoid(n), more of the middle) or "uniform".
        shift: t' = shift t / (1 + (shift - 1) t); above 1 for more noise, as large token counts want it.
    """

    times: str = "logit-normal"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.times not in ("logit-normal", "uniform"):
            raise Refused("unknown distribution of times", got=repr(self.times), expected="logit-normal or uniform")
        if not self.shift > 0:
            raise Refused("the shift of times is out of range", got=self.shift, expected="a number above 0")

    def draw_times(self, normal: Tensor) -> Tensor:
        """Standard normal numbers to times in (0, 1), of the same shape; the randomness is the caller's."""
        if self.times == "logit-normal":
            t = torch.sigmoid(normal)
        else:
            t = torch.special.ndtr(normal)  # the normal's distribution function makes it uniform
        return self.shift * t / (1 + (self.shift - 1) * t)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x_0 and noise (batch, ...) and times (batch,)."""
        t = _like(t, x_0)
        return (1 - t) * x_0 + t * noise  # eq. 1 of 2209.03003, with noise at t = 1

    def velocity(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """dx_t / dt, the same at every t."""
        return noise - x_0

    def loss(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor) -> FlowLoss:
        """Mean squared error of the predicted velocity; predict(x_t, timesteps) is given timesteps in [0, 1000]."""
        predicted = predict(self.add_noise(x_0, noise, t), t * TIMESTEPS)
        error = (predicted.float() - self.velocity(x_0, noise).float()) ** 2
        return FlowLoss(error.flatten(1).mean(1))


def _like(t: Tensor, x: Tensor) -> Tensor:
    if t.shape != x.shape[:1]:
        raise ValueError(f"times of shape {tuple(t.shape)} for samples of shape {tuple(x.shape)}: one a sample wanted")
    return t.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
