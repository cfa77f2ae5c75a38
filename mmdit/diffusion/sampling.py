"""The sampling loop: a diffusers scheduler steps along what a callable predicts."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]


def sample(
    predict: Predict, noise: Tensor, scheduler: Any, steps: int, *, after_step: Callable[[int], None] | None = None
) -> Tensor:
    """From noise (batch, ...) to x_0, float32 throughout.

    Args:
        predict: x_t and timesteps (batch,) to what the scheduler expects of a network (for flow, the velocity).
        scheduler: a diffusers scheduler; its steps are set here.
        steps: how many times `predict` is asked (schedulers of higher order ask more often).
        after_step: called with the number of each finished step, from 1.
    """
    _set_timesteps(scheduler, steps, noise.device)
    x = noise.float()
    for number, t in enumerate(scheduler.timesteps, start=1):
        predicted = predict(x, t.expand(len(x)))
        x = scheduler.step(predicted.float(), t, x, return_dict=False)[0]
        if after_step is not None:
            after_step(number)
    return x


def _set_timesteps(scheduler: Any, steps: int, device: torch.device) -> None:
    if scheduler.__class__.__name__ == "FlowMatchEulerDiscreteScheduler":
        # left to itself it walks to t = 0.001 in steps - 1 steps, and the last one does nothing
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist(), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
