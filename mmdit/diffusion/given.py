"""What a process does at given frames: no noise, the timestep of clean data, and no part in the loss.

Shapes: x (B, C, F, H, W); `given` (B, F), True at given frames; times (B,).
"""

import torch
from torch import Tensor


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
