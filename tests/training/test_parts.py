"""The average, the learning rate, the choice of optimizer."""

import pytest
import torch
from torch import nn

from mmdit.training.config import OptimizerConfig
from mmdit.training.ema import EMA
from mmdit.training.optimizer import learning_rate_scale, make_optimizers, set_learning_rate


def test_the_average_follows_its_formula_and_leaves_the_weights_alone() -> None:
    layer = nn.BatchNorm1d(1)
    layer.bias.requires_grad_(False)
    ema = EMA(layer, decay=0.5)
    expected = 1.0
    for step in (1, 2, 3, 50):
        with torch.no_grad():
            layer.weight.fill_(10.0 * step)
        ema.update(layer, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * 10.0 * step
    with ema.in_place_of_weights(layer):
        assert layer.weight.item() == pytest.approx(expected)
    assert layer.weight.item() == 500.0
    assert list(ema.averages) == ["weight"]


def test_the_average_is_float32_for_any_weights() -> None:
    layer = nn.Linear(2, 2).to(torch.bfloat16)
    ema = EMA(layer, decay=0.999)
    ema.update(layer, 10_000)
    assert {value.dtype for value in ema.averages.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("decay", "expected"),
    [("constant", [0.5, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.5, 0.25]), ("cosine", [0.5, 1, 1, 0.5, 0.146])],
)
def test_the_learning_rate_warms_up_and_decays(decay: str, expected: list[float]) -> None:
    config = OptimizerConfig(warmup=2, decay=decay)  # type: ignore[arg-type]
    scales = [learning_rate_scale(config, step, 10) for step in (0, 1, 2, 6, 8)]
    assert scales == pytest.approx(expected, abs=1e-3)


def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else() -> None:
    matrix = nn.Linear(4, 4)
    blocks = nn.ModuleList([nn.ModuleDict({"fc1": matrix, "adaLN_modulation": nn.Linear(4, 4)})])
    module = nn.ModuleDict({"blocks": blocks, "final": nn.Linear(4, 4)})
    net = nn.ModuleDict({"transformer": module})
    adamw, muon = make_optimizers(net, OptimizerConfig(lr=1e-3, muon_lr=1e-2))
    assert [id(weight) for weight in muon.param_groups[0]["params"]] == [id(matrix.weight)]
    assert len(adamw.param_groups[0]["params"]) == 5
    set_learning_rate([adamw, muon], 0.5)
    assert (adamw.param_groups[0]["lr"], muon.param_groups[0]["lr"]) == (5e-4, 5e-3)
    assert len(make_optimizers(net, OptimizerConfig())) == 1
