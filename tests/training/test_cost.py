"""Every part of a step is found, and the parts are the step."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit.models import create_model, model_cost
from mmdit.models.cpu_kernels import KERNELS, is_quick
from mmdit.tools import bench_training
from mmdit.training import cost, loop
from mmdit.training.checkpoint import find_checkpoint
from mmdit.training.config import OptimizerConfig
from mmdit.training.cost import MODEL, measure_loading, measure_loop, measure_plain_loading
from mmdit.training.muon import Muon
from mmdit.training.optimizer import make_optimizers
from mmdit.training.trainee import Trainee


def test_the_parts_add_up(recipe: Any, tmp_path: Path) -> None:
    cost = measure_loop(recipe(), tmp_path, 1)  # of one step, medians are the values themselves
    assert sum(cost.parts.values()) == pytest.approx(cost.step, rel=1e-6)
    assert all(seconds > 0 for seconds in cost.parts.values())
    assert 0 < cost.own_share < 1
    others = sum(seconds for name, seconds in cost.parts.items() if name not in MODEL)
    assert cost.own_share == pytest.approx(others / cost.step, rel=0.2)
    assert len(measure_loading(recipe(), 4)) == 4 == len(measure_plain_loading(recipe(), 4))


def test_a_step_is_told_with_its_precision_its_batches_and_its_rates(recipe: Any, tmp_path: Path) -> None:
    config = recipe(precision="bfloat16", data__image_share=0.0)
    told = measure_loop(config, tmp_path / "ours", 1)
    saved = find_checkpoint(tmp_path / "ours") / "transformer" / "config.json"
    network = json.loads(saved.read_text())
    size, patch = network["sample_size"], network["patch_size"]
    assert told.precision == "bfloat16" and told.batches == (f"4 x 4x{'x'.join(map(str, size))}",)
    seconds = told.step - told.parts["checkpoint"]
    tokens = 4 * math.prod(n // p for n, p in zip(size, patch, strict=True))
    assert told.tokens_per_s * seconds == pytest.approx(tokens, rel=1e-6)
    assert told.flops_per_s * seconds == pytest.approx(4 * 3 * 2 * model_cost(network, size).macs, rel=1e-6)
    assert told.memory > 10**7 and told.device == "cpu"
    assert measure_loop(config, tmp_path / "plain", 1, plain=True).precision == "float32"


def test_the_plain_loop_has_nothing_that_makes_it_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr(cost, "keep_freed_memory", kept.append)
    trainee = Trainee(create_model("tiny", sample_size=(3, 4, 4), in_channels=4), None)
    with cost._as_one_would_write_it():
        adamw, muon = make_optimizers(trainee, OptimizerConfig(lr=1e-3, muon_lr=1e-2))
        loop.keep_freed_memory()
        assert not any(is_quick(name, torch.zeros(10**6)) for name in KERNELS)
    assert type(adamw) is torch.optim.AdamW and not adamw.param_groups[0]["fused"] and type(muon) is torch.optim.Muon
    assert kept == [False]
    adamw, muon = make_optimizers(trainee, OptimizerConfig(lr=1e-3, muon_lr=1e-2))
    assert adamw.param_groups[0]["fused"] and type(muon) is Muon


def test_the_benchmarks_tell_in_json(recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe().model_dump_json())  # JSON is YAML
    for kind in (bench_training.train, bench_training.load):
        kind(str(tmp_path / "recipe.yaml"), None, steps=1, runs=1, as_json=True)
        told = json.loads(capsys.readouterr().out)
        told = told["figures"]
        assert told["own_share"] > 0 if kind is bench_training.train else told["ratio"] > 0
        assert told["precision"] == "float32" and told["memory"] > 0
        assert told["share"] == pytest.approx(told["flops_per_s"] / told["product_flops_per_s"])
        beside = "plain_step" if kind is bench_training.train else "batches_per_second_dataloader"
        assert told[beside] > 0
        kind(str(tmp_path / "recipe.yaml"), None, steps=1, runs=1)
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith("float32, batches of 4 x 4x") and "tokens/s" in lines[2] and "MB" in lines[2]
