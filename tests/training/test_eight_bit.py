"""AdamW with 8-bit state, of torchao: what is kept of it are plain tensors, and it is taken up bit for bit."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import state_of
from safetensors.torch import load_file
from torch import nn

from mmdit.errors import Refused
from mmdit.training import lora
from mmdit.training.checkpoint import find_checkpoint, load_optimizers, optimizer_tensors
from mmdit.training.config import OptimizerConfig
from mmdit.training.eight_bit import adamw_8bit
from mmdit.training.loop import train
from mmdit.training.optimizer import make_optimizers
from mmdit.training.trainee import Trainee

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is an extra")


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.compile", lambda function, **_: function)  # it takes half a minute


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8))


def step(module: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
    (module(x) - 1).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.1}


@needs_torchao
def test_it_steps_nearly_as_adamw_does_in_a_quarter_of_the_memory() -> None:
    modules = network(), network()
    start = [weight.detach().clone() for weight in modules[0].parameters()]
    optimizers = adamw_8bit(modules[0].parameters(), **SETTINGS), torch.optim.AdamW(modules[1].parameters(), **SETTINGS)
    for seed in range(5):
        for module, optimizer in zip(modules, optimizers, strict=True):
            step(module, optimizer, seed)
    for eight, full, first in zip(modules[0].parameters(), modules[1].parameters(), start, strict=True):
        assert (eight - full).norm() < 0.1 * (full - first).norm()
    kept = [optimizer_tensors([optimizer]) for optimizer in optimizers]
    large = [sum(value.nbytes for key, value in state.items() if key.startswith("0.0.")) for state in kept]
    # of 2 x 4096 values: a byte each, a scale for 256 of them, and twice a table of 256 values
    assert large == [4 + 2 * (4096 + 4096 // 256 * 4 + 1024), 4 + 2 * 4096 * 4]


@needs_torchao
def test_its_state_is_plain_tensors_and_goes_on_bit_for_bit(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    whole, parts = network(), network()
    one, other = (adamw_8bit(module.parameters(), **SETTINGS) for module in (whole, parts))
    for seed in range(6):
        step(whole, one, seed)
        step(parts, other, seed)
        state = optimizer_tensors([other])
        assert {type(value) for value in state.values()} == {torch.Tensor}
        assert any(value.dtype == torch.uint8 for value in state.values())
        save_file(state, tmp_path / "state.safetensors")
        other = adamw_8bit(parts.parameters(), **SETTINGS)
        load_optimizers([other], tmp_path / "state.safetensors")
        other.param_groups[0]["lr"].fill_(SETTINGS["lr"])
        moments = other.state[next(parts.parameters())]
        assert (moments["exp_avg"].signed, moments["exp_avg_sq"].signed) == (True, False)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), parts.parameters(), strict=True))
    ends = [optimizer_tensors([optimizer]) for optimizer in (one, other)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


class Interrupted(Exception):
    pass


def stop(step: int, *_: object) -> None:
    if step == 3:
        raise Interrupted


@needs_torchao
@pytest.mark.parametrize("tuned", [False, True])
def test_a_run_goes_on_bit_for_bit(recipe: Any, tmp_path: Path, tuned: bool) -> None:
    changes: dict[str, Any] = {"model__hidden_size": 64, "optimizer__adamw": "8bit", "optimizer__muon_lr": None}
    if tuned:
        train(recipe(steps=1, model__hidden_size=64), tmp_path / "base")
        changes |= {"init_from": str(tmp_path / "base"), "lora": {"rank": 64}}
    config = recipe(**changes)
    train(config, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(config, tmp_path / "parts", progress=stop)
    train(config, tmp_path / "parts")
    assert state_of(tmp_path / "whole") == state_of(tmp_path / "parts")
    checkpoint = find_checkpoint(tmp_path / "whole")
    assert any(key.endswith(".codes") for key in load_file(checkpoint / "optimizer.safetensors"))
    assert (checkpoint / lora.FILE).is_file() == tuned
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines] == pytest.approx([5e-4, 1e-3, 1e-3, 7.5e-4, 5e-4, 2.5e-4], rel=1e-12)


def test_without_torchao_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdit.models import create_model

    find = importlib.util.find_spec
    missing = "torchao"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == missing else find(name, *more))
    trainee = Trainee(create_model("tiny", sample_size=(3, 4, 4), in_channels=4), None)
    with pytest.raises(Refused, match=r'8bit needs torchao.*"mmdit-video\[eightbit\]", or set optimizer.adamw=fused'):
        make_optimizers(trainee, OptimizerConfig(adamw="8bit"))
    assert isinstance(make_optimizers(trainee, OptimizerConfig())[0], torch.optim.AdamW)
