"""Faults while two processes train together, or while a thread writes: signals, a death, a full disk."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pairs import end_pair, start_pair
from runs import state_of

from mmdit import files
from mmdit.config import dump_config
from mmdit.errors import Stopped
from mmdit.training.checkpoint import list_checkpoints, verify_checkpoint
from mmdit.training.loop import train
from mmdit.training.snapshot import Writer

PROGRAM = Path(__file__).parents[2] / "tools" / "train.py"


def begin(recipe: Any, folder: Path, **env: str) -> Any:
    """A pair on weights in parts; `env`: of the second process."""
    endless = {"steps": 100_000, "optimizer__muon_lr": None, "sharding": "full", "optimizer__decay": "constant"}
    (folder / "recipe.yaml").write_text(dump_config(recipe(**endless)))
    return start_pair(PROGRAM, folder / "recipe.yaml", "--out", folder / "run", env=({}, env))


def wait_for(pair: Any, seen: Callable[[], bool]) -> None:
    for _ in range(6000):
        if seen():
            return
        assert pair[0].poll() is None, end_pair(pair)
        time.sleep(0.02)
    raise AssertionError(end_pair(pair, 0.1))


def test_one_of_two_is_told_to_stop_and_both_save_and_end(recipe: Any, tmp_path: Path) -> None:
    pair = begin(recipe, tmp_path)
    wait_for(pair, lambda: len(list_checkpoints(tmp_path / "run")) > 1)
    pair[1].send_signal(signal.SIGTERM)
    ends = end_pair(pair)
    assert [code for code, _ in ends] == [Stopped.exit_code] * 2, ends
    newest = list_checkpoints(tmp_path / "run")[-1]
    verify_checkpoint(newest)
    step = int(newest.name.removeprefix("step-"))
    assert all(f"training was asked to stop, in {tmp_path / 'run'}, got step {step} of" in said for _, said in ends)
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == step and not list(tmp_path.rglob(f"{files.PART}*"))


def test_one_of_two_dies_while_it_writes_and_one_process_goes_on(recipe: Any, tmp_path: Path) -> None:
    """Killed as its part of the second checkpoint is about to be whole: the first one stays, and can be taken up."""
    pair = begin(recipe, tmp_path, MMDIT_FAULT="kill@shard-00001-of-00002.safetensors:written#4")
    pair[1].wait(120)
    time.sleep(0.2)
    pair[0].kill()  # as a launcher does, or a lost connection
    assert end_pair(pair)[1][0] == -signal.SIGKILL
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-0000002"]
    verify_checkpoint(list_checkpoints(tmp_path / "run")[0])
    changes = {"steps": 100_000, "optimizer__muon_lr": None, "optimizer__decay": "constant"}

    def stop(step: int, *_: object) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="step 4 of"):
        train(recipe(**changes), tmp_path / "run", progress=stop)
    assert not list(tmp_path.rglob(f"{files.PART}*"))


def test_steps_go_on_while_a_checkpoint_is_written_as_it_was(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held back until two steps later: its files are still those of the step that it is of."""
    config = recipe(steps=4, checkpoint_every=2)
    train(config, tmp_path / "plain")
    go_on, steps = threading.Event(), []
    start = Writer.start

    def held_back(self: Writer, work: Callable[[], None]) -> None:
        def later() -> None:
            go_on.wait(60)
            work()

        start(self, later)

    def progress(step: int, *_: object) -> None:
        steps.append((step, len(list_checkpoints(tmp_path / "late"))))
        if step == 4:
            go_on.set()

    monkeypatch.setattr(Writer, "start", held_back)
    train(config, tmp_path / "late", progress=progress)
    assert steps == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert state_of(tmp_path / "late") == state_of(tmp_path / "plain")
    first = [(list_checkpoints(tmp_path / run)[0] / "manifest.json").read_text() for run in ("late", "plain")]
    assert first[0] == first[1]


def test_a_failed_write_is_told_though_the_loop_fails_too(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(step: int, *_: object) -> None:
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setenv("MMDIT_FAULT", "full@manifest.json:begin")
    with pytest.raises(KeyboardInterrupt):
        train(recipe(), tmp_path / "run", progress=fail)
    assert "a checkpoint could not be written: the disk is full" in caplog.text
    assert not list_checkpoints(tmp_path / "run") and not list(tmp_path.rglob(f"{files.PART}*"))
