"""`mmdit verify RUN`: every checkpoint, and that resuming is exact."""

from pathlib import Path
from typing import Any

import pytest
from commands import exit_code
from runs import flip

from mmdit import files
from mmdit.errors import Refused, Stopped
from mmdit.training import resume
from mmdit.training.checkpoint import find_checkpoint
from mmdit.training.loop import train
from mmdit.training.verify import verify_run


@pytest.fixture
def run(recipe: Any, tmp_path: Path) -> Path:
    train(recipe(steps=4), tmp_path / "run")
    return tmp_path / "run"


def contents(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_sound_run_is_proved_and_stays_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    assert exit_code("verify", run) == 0
    told = capsys.readouterr().out
    assert "sound: 2 checkpoints; 3 steps, interrupted and resumed, came out bit for bit" in told
    assert contents(run) == before
    assert exit_code("verify", run, "--steps", 0) == 0
    assert capsys.readouterr().out == "sound: 2 checkpoints\n"


def test_a_damaged_checkpoint_is_named_and_the_one_before_proved(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = find_checkpoint(run) / "optimizer.safetensors"
    flip(path)
    assert exit_code("verify", run) == Stopped.exit_code
    told = capsys.readouterr()
    assert str(path) in told.out and "1 faults" in told.err and "--fallback" in told.err
    assert verify_run(run, 2).steps == 2


def test_resuming_that_forgets_is_found(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = resume.checkpoints.load_optimizers

    def forgetful(optimizers: Any, path: Path) -> None:
        if path.parent.name != "step-0000004":
            return
        plain(optimizers, path)

    monkeypatch.setattr(resume.checkpoints, "load_optimizers", forgetful)
    damages = "\n".join(verify_run(run).damages)
    assert "optimizer.safetensors is not what" in damages and "the losses of step 7 differ" in damages
    assert not list(run.glob(f"{files.PART}*"))


def test_copies_make_no_samples_and_tell_no_tracker(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe(steps=2, samples={}), tmp_path, sample=lambda run: lambda stop_wanted: {})
    monkeypatch.setattr("mmdit.training.trackers._start", pytest.fail)
    assert verify_run(tmp_path, 2).damages == []


def test_what_is_no_run_or_in_use_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no checkpoint"):
        verify_run(tmp_path)
    with pytest.raises(Refused, match="got 1, expected 2 or more"):
        verify_run(run, 1)
    with files.lock(run), pytest.raises(Refused, match="the folder is in use"):
        verify_run(run)
