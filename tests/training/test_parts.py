"""The average, the learning rate, the choice of optimizer."""

import pytest
import torch
from torch import nn

from mmdit.conditioning import build_text_encoder
from mmdit.models import create_model
from mmdit.models.block import CONDITIONINGS
from mmdit.training.config import OptimizerConfig
from mmdit.training.ema import EMA
from mmdit.training.optimizer import learning_rate_scale, make_optimizers, set_learning_rate
from mmdit.training.trainee import Trainee


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


def test_muon_takes_the_matrices_between_hidden_vectors_and_nothing_else() -> None:
    network = create_model(
        "tiny", sample_size=(3, 4, 4), in_channels=4, num_classes=3, text_dim=16, layout="factorized"
    )
    trainee = Trainee(network, build_text_encoder(["a red coat"], width=16))
    adamw, muon = make_optimizers(trainee, OptimizerConfig(lr=1e-3, muon_lr=1e-2, muon_rounds=3))
    assert muon.param_groups[0]["ns_steps"] == 3
    name_of = {id(weight): name for name, weight in trainee.named_parameters()}
    names = [{name_of[id(weight)] for weight in found.param_groups[0]["params"]} for found in (adamw, muon)]
    assert names[0] | names[1] == set(name_of.values()) and not names[0] & names[1]
    matrices = {name for name in name_of.values() if name.startswith("transformer.") and name.endswith(".weight")}
    assert names[1] == {name for name in matrices if "table" not in name} - {
        "transformer.x_embedder.proj.weight", "transformer.final_layer.linear.weight",
    }  # fmt: skip
    set_learning_rate([adamw, muon], 0.5)
    assert (adamw.param_groups[0]["lr"], muon.param_groups[0]["lr"]) == (5e-4, 5e-3)
    assert len(make_optimizers(trainee, OptimizerConfig())) == 1


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("tokens_by", ["cross-attention", "in-context"])
def test_muon_takes_the_linear_layers_of_every_kind_of_network(conditioning: str, tokens_by: str) -> None:
    """All that has a name that ends in weight, but for what is no product of hidden vectors: tables, norms, patches
    and the output."""
    network = create_model(
        "tiny", sample_size=(3, 4, 4), in_channels=4, num_classes=3, text_dim=16, text_token_dim=16,
        text_tokens_by=tokens_by, conditioning=conditioning, scalars=("fps",), layout="factorized", qk_norm=True,
    )  # fmt: skip
    _, muon = make_optimizers(Trainee(network, None), OptimizerConfig(muon_lr=1e-2))
    taken = {id(weight) for weight in muon.param_groups[0]["params"]}
    others = {name for name, weight in network.named_parameters() if id(weight) not in taken}
    matrices = {name for name in others if name.endswith(".weight") and "norm" not in name}
    assert matrices == {"x_embedder.proj.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight"}
    assert all(weight.ndim == 2 for weight in muon.param_groups[0]["params"])


def test_buffers_are_copied_and_never_averaged() -> None:
    layer = nn.BatchNorm1d(2)
    ema = EMA(layer, [0.9, 0.5])
    for step in range(1, 4):
        layer(torch.randn(8, 2) + 5)
        ema.update(layer, step)
    buffers = {name: value.clone() for name, value in layer.named_buffers()}
    with ema.in_place_of_weights(layer, 1):
        assert all(torch.equal(value, buffers[name]) for name, value in layer.named_buffers())
    assert all(set(averages) == {"weight", "bias"} for averages in ema.all_averages)


def test_the_average_may_be_kept_elsewhere() -> None:
    layer = nn.Linear(2, 2)
    assert {value.device.type for value in EMA(layer, 0.9, "meta").averages.values()} == {"meta"}
