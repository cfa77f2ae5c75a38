"""Muon for convolution kernels: momentum whose step is made orthogonal (Jordan et al. 2024, the Muon optimizer).

torch.optim.Muon takes matrices only. A kernel (out, in, time, height, width) is a matrix once flattened; here it is
flattened along the shorter of its two channel axes, which makes the Newton-Schulz products several times smaller for
kernels that widen, as those in front of a pixel shuffle do.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# A quintic whose iteration drives singular values into about [0.7, 1.2] in five rounds (Jordan et al. 2024).
_QUINTIC = (3.4445, -4.7750, 2.0315)


class KernelMuon(torch.optim.Optimizer):
    """Steps by the orthogonal factor of the (Nesterov) momentum, scaled to the size that Adam's steps have."""

    def __init__(self, kernels: Iterable[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(kernels, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step on every kernel that has a gradient. `closure` is there for torch's interface and must be None."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is None:
                    continue
                state = self.state[kernel]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(kernel)
                momentum = state["momentum"].lerp_(kernel.grad, 1 - group["momentum"])
                direction = kernel.grad.lerp(momentum, group["momentum"])
                kernel.add_(orthogonal_kernel(direction), alpha=-group["lr"])


def orthogonal_kernel(direction: Tensor) -> Tensor:
    """The orthogonal factor of a kernel (out, in, ...), times 0.2 sqrt(columns), which is the RMS of an Adam step."""
    swap = direction.shape[1] < direction.shape[0]
    rows = direction.transpose(0, 1) if swap else direction
    matrix = rows.reshape(rows.shape[0], -1)
    found = _newton_schulz(matrix) * (0.2 * math.sqrt(max(matrix.shape)))
    found = found.reshape(rows.shape)
    return found.transpose(0, 1) if swap else found


def _newton_schulz(matrix: Tensor) -> Tensor:
    """U V^T of matrix = U S V^T, roughly: X <- a X + (b A + c A A) X with A = X X^T."""
    a, b, c = _QUINTIC
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)
