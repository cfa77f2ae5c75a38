"""Every part of a step is found, and the parts are the step."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmdit.tools import bench_training
from mmdit.training.cost import MODEL, measure_loading, measure_loop


def test_the_parts_add_up(recipe: Any, tmp_path: Path) -> None:
    cost = measure_loop(recipe(), tmp_path, 1)  # of one step, medians are the values themselves
    assert sum(cost.parts.values()) == pytest.approx(cost.step, rel=1e-6)
    assert all(seconds > 0 for seconds in cost.parts.values())
    assert 0 < cost.own_share < 1
    others = sum(seconds for name, seconds in cost.parts.items() if name not in MODEL)
    assert cost.own_share == pytest.approx(others / cost.step, rel=0.2)
    assert len(measure_loading(recipe(), 4)) == 4


def test_the_benchmarks_tell_in_json(recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.yaml").write_text(recipe().model_dump_json())  # JSON is YAML
    for kind in (bench_training.train, bench_training.load):
        kind(str(tmp_path / "recipe.yaml"), None, steps=1, runs=1, as_json=True)
        told = json.loads(capsys.readouterr().out)
        told = told["figures"]
        assert told["own_share"] > 0 if kind is bench_training.train else told["ratio"] > 0
