"""Moving averages of weights, float32 always."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mmdit.training.sharding import local


class EMA:
    """averages = d averages + (1 - d) weights, with d rising from 0 to `decay` as (1 + step) / (10 + step).

    Weights that are trained are averaged; everything else in the module (frozen tables, buffers) stays its own. Where
    processes hold the weights in parts, each averages its own part.

    Args:
        decay: one, or several that are kept side by side; samples and exports use the first.
        device: where the averages are kept; None for each beside its weight.
    """

    def __init__(
        self, module: nn.Module, decay: float | Sequence[float], device: torch.device | str | None = None
    ) -> None:
        self.decays = [decay] if isinstance(decay, (int, float)) else list(decay)
        self.all_averages = [
            {name: weight.to(device, torch.float32, copy=True) for name, weight in _trained(module)}
            for _ in self.decays
        ]

    @property
    def averages(self) -> dict[str, Tensor]:
        """Of the first decay."""
        return self.all_averages[0]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """After optimizer step number `step`, from 1."""
        weights = [weight.to(self.averages[name].device, torch.float32) for name, weight in _trained(module)]
        for decay, averages in zip(self.decays, self.all_averages, strict=True):
            torch._foreach_lerp_(list(averages.values()), weights, 1 - min(decay, (1 + step) / (10 + step)))

    @contextmanager
    def in_place_of_weights(self, module: nn.Module, number: int = 0) -> Iterator[None]:
        """Inside, the module's weights are the averages of decay `number`; afterwards they are themselves again, bit
        for bit."""
        kept = {name: weight.clone() for name, weight in _trained(module)}
        self._put(module, self.all_averages[number])
        try:
            yield
        finally:
            self._put(module, kept)

    def load(self, state: dict[str, Tensor], number: int = 0) -> None:
        """Takes the averages of decay `number` from the state dict of a module that held them."""
        for name, average in self.all_averages[number].items():
            average.copy_(local(state[name]))

    @staticmethod
    @torch.no_grad()
    def _put(module: nn.Module, values: dict[str, Tensor]) -> None:
        for name, weight in _trained(module):
            weight.copy_(values[name])


def _trained(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, local(weight.detach())) for name, weight in module.named_parameters() if weight.requires_grad)
