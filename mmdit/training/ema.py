"""Moving average of weights, float32 always."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """averages = d averages + (1 - d) weights, with d rising from 0 to `decay` as (1 + step) / (10 + step).

    Weights that are trained are averaged; everything else in the module (frozen tables, buffers) stays its own.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.averages = {name: weight.detach().float().clone() for name, weight in _trained(module)}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After optimizer step number `step`, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [weight.detach().float() for _, weight in _trained(module)]
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - decay)

    @contextmanager
    def in_place_of_weights(self, module: nn.Module) -> Iterator[None]:
        """Inside, the module's weights are the averages; afterwards they are themselves again, bit for bit."""
        kept = {name: weight.detach().clone() for name, weight in _trained(module)}
        self._put(module, self.averages)
        try:
            yield
        finally:
            self._put(module, kept)

    def load(self, state: dict[str, Tensor]) -> None:
        """Takes the averages from the state dict of a module that held them."""
        for name, average in self.averages.items():
            average.copy_(state[name])

    @staticmethod
    @torch.no_grad()
    def _put(module: nn.Module, values: dict[str, Tensor]) -> None:
        for name, weight in _trained(module):
            weight.copy_(values[name])


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in module.named_parameters() if weight.requires_grad)
