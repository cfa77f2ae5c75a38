"""Every row of the table of `initialize`, measured for each option; no weight is without a row."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mmdit.models import DiT
from mmdit.models.block import CONDITIONINGS, LAYOUTS


def expected(model: DiT, name: str) -> str:
    """Which row a weight belongs to, by its name."""
    conditioning = model.config.conditioning
    if name.endswith(("norm.weight", "_scale")):
        return "one"
    if name.endswith(("bias", "modulation_table")) or name == "final_layer.linear.weight":
        return "zero"
    if "modulation" in name:
        return "xavier" if conditioning == "adaln" else "zero"
    if "cross_attn.proj" in name:
        return "zero"
    if "time_attn.proj" in name:
        return "xavier" if conditioning in ("adaln-zero", "shared-adaln") else "zero"
    return "normal" if name.startswith(("t_embedder", "y_embedder", "scalar_embedders")) else "xavier"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize(("modern", "again"), [(False, False), (True, True)])
def test_every_weight_starts_as_the_table_says(
    fresh: Callable[..., DiT], all_inputs: dict, layout: str, conditioning: str, modern: bool, again: bool
) -> None:
    options = {"norm": "rms", "mlp": "swiglu", "qk_norm": True} if modern else {}
    model = fresh(layout=layout, conditioning=conditioning, hidden_size=64, **all_inputs, **options)
    if again:
        for weight in model.parameters():
            nn.init.constant_(weight, 7.0)
        model.initialize()
    for name, weight in model.named_parameters():
        row, matrix = expected(model, name), weight.detach().flatten(1) if weight.ndim > 1 else weight.detach()
        if row in ("zero", "one"):
            assert (matrix == (row == "one")).all(), name
        elif row == "normal":
            assert matrix.std() == pytest.approx(0.02, rel=0.2), name
            assert matrix.abs().max() > 0.045, name  # a uniform of this deviation ends at 0.035
        else:
            bound = (6 / sum(matrix.shape)) ** 0.5
            assert matrix.abs().max() <= bound, name
            assert matrix.std() == pytest.approx(bound / 3**0.5, rel=0.12), name
        if row in ("normal", "xavier"):
            assert matrix.mean().abs() < 0.2 * matrix.std(), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@torch.no_grad()
def test_it_starts_as_zero(
    fresh: Callable[..., DiT], inputs: Callable[..., dict], all_inputs: dict, layout: str, conditioning: str
) -> None:
    model = fresh(layout=layout, conditioning=conditioning, **all_inputs)
    entered: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    model.final_layer.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    assert not model(**inputs(model)).any()
    if conditioning in ("adaln-zero", "shared-adaln") and layout != "alternating":  # there the time enters in between
        assert torch.equal(*entered)  # each block is the identity
