"""Which checkpoints stay."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmdit.errors import Refused
from mmdit.training.checkpoint import list_checkpoints
from mmdit.training.loop import train
from mmdit.training.retention import held_out_losses, kept_checkpoints


def kept(recipe: Any, losses: dict[int, float], **changes: Any) -> list[int]:
    found = [Path(f"step-{step:07d}") for step in (2, 4, 6, 8, 10)]
    return sorted(int(path.name[5:]) for path in kept_checkpoints(found, recipe(**changes), losses))


def test_newest_best_and_every_nth_stay(recipe: Any) -> None:
    losses = {2: float("nan"), 4: 0.5, 6: 0.4, 8: 0.7}
    assert kept(recipe, losses, keep_checkpoints=2) == [8, 10]
    assert kept(recipe, losses, keep_checkpoints=1, keep_best=True) == [6, 10]
    assert kept(recipe, {}, keep_checkpoints=1, keep_best=True) == [10]
    assert kept(recipe, losses, keep_checkpoints=1, keep_every=4) == [4, 8, 10]


def test_checkpoints_of_the_last_hours_stay(recipe: Any, tmp_path: Path) -> None:
    found = [tmp_path / f"step-{step:07d}" for step in (2, 4, 6, 8)]
    for path, hours in zip(found[:3], (5.0, 1.9, 1.0), strict=True):
        path.mkdir()
        (path / "manifest.json").write_text("{}")
        os.utime(path / "manifest.json", (1e9 - 3600 * hours,) * 2)
    for path in found[2:]:  # the last but one has lost its manifest
        path.mkdir(exist_ok=True)
    (found[2] / "manifest.json").unlink()
    (found[3] / "manifest.json").write_text("{}")
    os.utime(found[3] / "manifest.json", (1e9, 1e9))
    config = recipe(keep_checkpoints=1, keep_hours=2.0)
    assert kept_checkpoints(found, config, {}) == {found[1], found[3]}
    assert kept_checkpoints(found, recipe(keep_checkpoints=1), {}) == {found[3]}


def test_a_run_keeps_its_best_checkpoint(recipe: Any, tmp_path: Path) -> None:
    config = recipe(keep_best=True, keep_checkpoints=1, validate_every=1, checkpoint_every=1, optimizer__lr=0.3)
    train(config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["val_loss"] for line in lines}
    assert held_out_losses(tmp_path / "metrics.jsonl") == losses and len(losses) == 6
    best = min(losses, key=losses.__getitem__)
    assert [int(path.name[5:]) for path in list_checkpoints(tmp_path)] == sorted({best, 6})
    assert best != 6, "choose a learning rate with which it gets worse"


def test_the_best_without_a_held_out_loss_at_checkpoints_is_refused(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="got validate_every=3, checkpoint_every=2"):
        train(recipe(keep_best=True), tmp_path)


def test_the_best_without_validation_clips_is_refused(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="got no split 'none' in the data, expected validation clips"):
        train(recipe(keep_best=True, checkpoint_every=3, data__validation_split="none"), tmp_path)


def test_a_held_out_loss_that_is_not_finite_is_null_and_never_the_best(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=2, validate_every=1, optimizer__lr=1e30, optimizer__warmup=0), tmp_path)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (tmp_path / "metrics.jsonl").open()]
    assert lines[-1]["val_loss"] is None
    assert 2 not in held_out_losses(tmp_path / "metrics.jsonl")


def test_checkpoints_are_in_order_of_their_steps(tmp_path: Path) -> None:
    for step in (10_000_000, 9_999_999):
        (tmp_path / "checkpoints" / f"step-{step:07d}").mkdir(parents=True)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-9999999", "step-10000000"]
