"""Rectified flow: noise and data joined by a straight line, and a network that predicts its direction.

Source: arXiv 2209.03003; the distributions of times are those of 2403.03206.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.diffusion.given import frame_times, hold, mean_of_others
from mmdit.errors import Refused

# The timestep that a network sees is the time in [0, 1] times this, as in diffusers' flow schedulers.
TIMESTEPS = 1000

TIMES = ("logit-normal", "uniform", "mode")

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlowLoss:
    """What a training step needs: the loss of each sample, float32 (batch,), mean over all other axes."""

    per_sample: Tensor


@dataclass(frozen=True)
class RectifiedFlow:
    """x_t = (1 - t) x_0 + t noise, t in [0, 1]; the velocity dx/dt = noise - x_0 is what is predicted.

    Args:
        times: "logit-normal" (t = sigmoid(mean + scale n): more of the middle), "uniform", or "mode" (more of the
            middle, and no less than some of both ends).
        shift: t' = shift t / (1 + (shift - 1) t); above 1 for more noise, as large token counts want it
            (`shift_for_tokens`).
        mean, scale: of the normal under "logit-normal"; a mean above 0 for more noise.
        mode: how far "mode" is from uniform, -1 to 2 / (pi - 2); above 0 for the middle, below for the ends.

    Raises:
        Refused: for an unknown distribution, numbers out of range, and a setting that the distribution has not.
    """

    times: str = "logit-normal"
    shift: float = 1.0
    mean: float = 0.0
    scale: float = 1.0
    mode: float = 1.29

    def __post_init__(self) -> None:
        if self.times not in TIMES:
            raise Refused("unknown distribution of times", got=repr(self.times), expected=" or ".join(TIMES))
        for name, value, smallest in (("shift", self.shift, 0.0), ("scale", self.scale, 0.0)):
            if not value > smallest:
                raise Refused(f"the {name} of times is out of range", got=value, expected=f"a number above {smallest}")
        if not -1 <= self.mode <= 2 / (math.pi - 2):
            raise Refused("the mode of times is out of range", got=self.mode, expected="-1 to 1.75")
        for of, is_set in (("logit-normal", (self.mean, self.scale) != (0, 1)), ("mode", self.mode != 1.29)):
            if is_set and self.times != of:
                raise Refused(f"a setting of {of} times", got=f"{self.times} times", expected=f"{of} times")

    prediction = "velocity"

    def draw_times(self, normal: Tensor) -> Tensor:
        """Standard normal numbers to times in (0, 1), of the same shape; the randomness is the caller's."""
        if self.times == "logit-normal":
            t = torch.sigmoid(self.mean + self.scale * normal)
        else:
            t = torch.special.ndtr(normal)  # the normal's distribution function makes it uniform
        if self.times == "mode":  # eq. 20 of 2403.03206, which falls as the uniform number rises
            t = 1 - t - self.mode * (torch.cos(math.pi / 2 * t) ** 2 - 1 + t)
        return self.shift * t / (1 + (self.shift - 1) * t)

    def from_timesteps(self, timesteps: Tensor) -> Tensor:
        """Times of this process for the timesteps in [0, 1000] that a network is told."""
        return timesteps / TIMESTEPS

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x_0 and noise (batch, ...) and times (batch,)."""
        t = _like(t, x_0)
        return (1 - t) * x_0 + t * noise  # eq. 1 of 2209.03003, with noise at t = 1

    def velocity(self, x_0: Tensor, noise: Tensor) -> Tensor:
        """dx_t / dt, the same at every t."""
        return noise - x_0

    def data_coefficients(self, timesteps: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q), each (batch, 1, ...): the data that a velocity at timesteps in [0, 1000] stands for is
        p x_t + q velocity."""
        t = _like(timesteps / TIMESTEPS, x)
        return torch.ones_like(t), -t  # x_t - t (noise - x_0) = x_0

    def loss(self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor, given: Tensor | None = None) -> FlowLoss:
        """Mean squared error of the predicted velocity; predict(x_t, timesteps) is given timesteps in [0, 1000].

        Frames that are `given` (batch, frame) enter as they are, and are not in the mean; timesteps are then one a
        frame, (batch, frame).
        """
        x_t = hold(self.add_noise(x_0, noise, t), x_0, given)
        predicted = predict(x_t, frame_times(t * TIMESTEPS, given))
        error = (predicted.float() - self.velocity(x_0, noise).float()) ** 2
        return FlowLoss(mean_of_others(error, given))


def shift_for_tokens(tokens: int, base_tokens: int = 256) -> float:
    """The shift at which `tokens` are as uncertain at t' as `base_tokens` are at t: eq. 23 of 2403.03206."""
    if tokens < 1 or base_tokens < 1:
        raise Refused("a token count is out of range", got=f"{tokens} and {base_tokens}", expected="1 or more")
    return math.sqrt(tokens / base_tokens)


def _like(t: Tensor, x: Tensor) -> Tensor:
    if t.shape != x.shape[:1]:
        raise ValueError(f"times of shape {tuple(t.shape)} for samples of shape {tuple(x.shape)}: one a sample wanted")
    return t.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
