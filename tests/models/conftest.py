"""Small networks with random weights, and what they take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.models import DiT

SMALL: dict[str, Any] = {
    "sample_size": (3, 4, 6),
    "patch_size": (1, 2, 2),
    "in_channels": 4,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
}
# Every kind of input at once; with other `text_tokens_by`, both ways of text tokens.
ALL_INPUTS: dict[str, Any] = {"num_classes": 3, "text_dim": 8, "text_token_dim": 6, "scalars": ("fps", "height")}


@pytest.fixture
def all_inputs() -> dict[str, Any]:
    """Arguments of a network that takes every kind of input."""
    return dict(ALL_INPUTS)


@pytest.fixture
def fresh() -> Callable[..., DiT]:
    """A small network as it starts."""

    def make(**options: Any) -> DiT:
        torch.manual_seed(0)
        return DiT(**{**SMALL, **options})

    return make


@pytest.fixture
def small(fresh: Callable[..., DiT]) -> Callable[..., DiT]:
    """A small network whose every weight is random, so that nothing hides behind the zero start."""

    def make(**options: Any) -> DiT:
        model = fresh(**options)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(0.2 * torch.randn(weight.shape, generator=random))
        return model.eval()

    return make


@pytest.fixture
def inputs() -> Callable[..., dict[str, Any]]:
    """What a network takes: two samples, one with the null label, one with a padded text."""

    def make(model: DiT, grid: tuple[int, int, int] = (3, 4, 6), tokens: int = 5) -> dict[str, Any]:
        random = torch.Generator().manual_seed(1)
        config, values = model.config, {}
        values["latents"] = torch.randn(2, config.in_channels, *grid, generator=random)
        values["timesteps"] = torch.tensor([3.0, 700.0])
        if config.num_classes:
            values["labels"] = torch.tensor([0, config.num_classes])
        if config.text_dim:
            values["text"] = torch.randn(2, config.text_dim, generator=random)
        if config.text_token_dim:
            values["text_tokens"] = torch.randn(2, tokens, config.text_token_dim, generator=random)
            values["text_mask"] = torch.arange(tokens) < torch.tensor([[tokens], [2]])
        scalars: dict[str, Tensor] = {name: torch.tensor([8.0, 24.0]) + i for i, name in enumerate(config.scalars)}
        return {**values, "scalars": scalars} if scalars else values

    return make
