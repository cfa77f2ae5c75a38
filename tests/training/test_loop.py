"""Training learns, repeats, and goes on bit for bit where it stopped."""

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mmdit.errors import Refused, Stopped
from mmdit.training import loop
from mmdit.training.checkpoint import find_checkpoint, list_checkpoints, read_state, verify_checkpoint
from mmdit.training.loop import train
from mmdit.training.meter import TIMED

WEIGHTS = (
    "transformer/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
    "ema/transformer/diffusion_pytorch_model.safetensors",
    "ema/text_encoder/model.safetensors",
    "optimizer.safetensors",
)


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, averages, optimizer state and every logged loss are equal bit for bit."""
    for name in WEIGHTS:
        a, b = load_file(find_checkpoint(one) / name), load_file(find_checkpoint(other) / name)
        assert a.keys() == b.keys()
        assert [key for key in a if not torch.equal(a[key], b[key])] == []
    logs = []
    for folder in (one, other):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        logs.append([{key: value for key, value in line.items() if key not in TIMED} for line in lines])
    assert logs[0] == logs[1]


class Interrupted(Exception):
    pass


def stop_at(*steps: int) -> Any:
    def progress(step: int, *_: object) -> None:
        if step in steps:
            raise Interrupted

    return progress


def test_it_learns(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=60, validate_every=60, checkpoint_every=60, data__image_share=0.0), tmp_path / "run")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 60
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_interrupted_three_times_it_ends_as_if_never(recipe: Any, tmp_path: Path) -> None:
    train(recipe(), tmp_path / "whole")
    for step in (1, 3, 5):  # before the first checkpoint, and between two of them
        with pytest.raises(Interrupted):
            train(recipe(), tmp_path / "parts", progress=stop_at(step))
    train(recipe(), tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_every_recipe_value_that_may_change_may_and_no_other(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(recipe(), tmp_path, progress=stop_at(3))
    with pytest.raises(Refused, match="seed=1, expected seed=0"):
        train(recipe(seed=1), tmp_path)
    with pytest.raises(Refused, match=r"optimizer\.lr=0\.002, expected optimizer\.lr=0\.001"):
        train(recipe(optimizer__lr=2e-3), tmp_path)
    train(recipe(checkpoint_every=5, keep_checkpoints=1), tmp_path)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-0000006"]


def test_sigterm_saves_and_stops(recipe: Any, tmp_path: Path) -> None:
    def terminate(step: int, *_: object) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="step 3 of 6, saved"):
        train(recipe(), tmp_path / "parts", progress=terminate)
    assert signal.getsignal(signal.SIGTERM) == before
    assert read_state(find_checkpoint(tmp_path / "parts"))["step"] == 3
    train(recipe(), tmp_path / "parts")
    train(recipe(), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_step_without_a_finite_loss_changes_nothing_and_many_stop(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop._losses
    bad = {2, 3}

    def losses(run: Any, module: Any, batch: Any) -> torch.Tensor:
        values = plain(run, module, batch)
        return values * float("nan") if torch.is_grad_enabled() and run.step in bad else values

    monkeypatch.setattr(loop, "_losses", losses)
    with pytest.raises(Stopped, match="2 such steps in a row, the last on clips [0-9a-f]+"):
        train(recipe(stop_after_bad_steps=2, checkpoint_every=1), tmp_path / "stops")
    run = tmp_path / "goes_on"
    bad.remove(3)
    train(recipe(stop_after_bad_steps=2, checkpoint_every=1, keep_checkpoints=6), run)
    names = [f"checkpoints/step-000000{step}/{WEIGHTS[0]}" for step in (2, 3, 4)]
    before, after, later = (load_file(run / name) for name in names)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert any(not torch.equal(after[key], later[key]) for key in after)
    assert all(value.isfinite().all() for value in load_file(find_checkpoint(run) / WEIGHTS[2]).values())


def test_a_damaged_checkpoint_is_refused_by_name(recipe: Any, tmp_path: Path) -> None:
    train(recipe(), tmp_path)
    newest = find_checkpoint(tmp_path)
    verify_checkpoint(newest)
    path = newest / WEIGHTS[2]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(Refused, match="a file of the checkpoint is damaged, in .*ema/transformer"):
        train(recipe(), tmp_path)
    assert find_checkpoint(tmp_path, fallback=True).name == "step-0000004"


def test_label_only_and_no_conditions_and_images_only(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=2, conditions={"labels": True}), tmp_path / "labels")
    assert not (find_checkpoint(tmp_path / "labels") / "text_encoder").exists()
    train(recipe(steps=2, conditions={}, model__layout="space"), tmp_path / "none")
    train(recipe(steps=2, precision="bfloat16"), tmp_path / "bfloat16")


def test_what_the_store_lacks_is_refused(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no row of split 'test'"):
        train(recipe(data__split="test"), tmp_path)
    with pytest.raises(Refused, match="no whole latent store"):
        train(recipe(data__store=str(tmp_path / "nowhere")), tmp_path)
