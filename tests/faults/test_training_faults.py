"""Faults while training: kills, signals, full disks, damaged checkpoints, two trainers, unwritable places."""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import exit_code
from kills import killed_at
from runs import change_state, flip, sign, state_of

from mmdit import files
from mmdit.config import dump_config
from mmdit.errors import Refused, Stopped
from mmdit.training import loop
from mmdit.training.checkpoint import find_checkpoint, list_checkpoints, verify_checkpoint
from mmdit.training.loop import train


def names(run: Path) -> list[str]:
    return [path.name for path in list_checkpoints(run)]


def begun(work: Callable[[], Any]) -> Any:
    process = multiprocessing.get_context("fork").Process(target=work, daemon=False)
    process.start()
    return process


class Interrupted(Exception):
    pass


def stop_at(last: int) -> Any:
    def progress(step: int, *_: object) -> None:
        if step == last:
            raise Interrupted

    return progress


@pytest.fixture
def trained(recipe: Any, tmp_path: Path) -> Path:
    """A run of 4 steps with checkpoints 2 and 4, and its recipe as a file beside it."""
    config = recipe(steps=4)
    train(config, tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(dump_config(config))
    return tmp_path / "run"


@pytest.mark.slow
def test_killed_at_20_random_moments_it_ends_as_if_never(recipe: Any, tmp_path: Path) -> None:
    config = recipe(steps=4)
    train(config, tmp_path / "whole")
    whole = state_of(tmp_path / "whole")
    before = time.monotonic()
    begun(lambda: train(config, tmp_path / "timed")).join(120)
    longest = time.monotonic() - before
    moments, kills, folder = random.Random(0), 0, 0
    while kills < 20:
        run = tmp_path / str(folder)
        process = begun(lambda: train(config, run))  # noqa: B023
        process.join(moments.uniform(0.1, 1.1) * longest)
        process.kill()
        process.join(120)
        kills += process.exitcode == -signal.SIGKILL
        if process.exitcode == 0:
            assert state_of(run) == whole
            folder += 1
    train(config, tmp_path / str(folder))
    assert state_of(tmp_path / str(folder)) == whole


def test_killed_at_every_write_it_goes_on_from_the_checkpoint_before(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = recipe(steps=2, checkpoint_every=1, keep_checkpoints=1)
    train(config, tmp_path / "whole")
    whole, point = state_of(tmp_path / "whole"), 0
    while True:
        point += 1
        run = tmp_path / str(point)
        killed = killed_at(monkeypatch, f"kill@#{point}", lambda: train(config, run))  # noqa: B023
        for path in list_checkpoints(run):
            verify_checkpoint(path)
        train(config, run)
        assert state_of(run) == whole, point
        assert names(run) == ["step-0000002"] and not list(run.rglob(f"{files.PART}*")), point
        if not killed:
            break
    # rows and config; a line a step; a checkpoint and three files in it, twice; the first one's removal
    assert point - 1 == 3 * 2 + 2 * 2 + 2 * (3 + 3 * 3) + 2


def test_resumed_three_times_in_one_epoch(recipe: Any, tmp_path: Path) -> None:
    config = recipe(data__batch_size=3)  # 6 steps of 3 clips are less than the split
    train(config, tmp_path / "whole")
    for step in (3, 4, 6):
        with pytest.raises(Interrupted):
            train(config, tmp_path / "run", progress=stop_at(step))
    train(config, tmp_path / "run")
    assert state_of(tmp_path / "run") == state_of(tmp_path / "whole")


def test_sigterm_saves_and_a_second_one_ends_at_once(recipe: Any, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe(steps=100_000, checkpoint_every=100_000)))
    run = tmp_path / "run"

    def terminated(after_a_step: int) -> int:
        process = begun(lambda: sys.exit(exit_code("train", tmp_path / "recipe.yaml", "--out", run)))
        while f'"step": {after_a_step}' not in (run / "metrics.jsonl").read_text():
            assert process.is_alive()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        if os.environ.get("MMDIT_FAULT"):
            while not list((run / "checkpoints").glob(f"{files.PART}*/state.json")):
                assert process.is_alive()
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGTERM)
        process.join(60)
        assert process.exitcode is not None
        return int(process.exitcode)

    run.mkdir()
    (run / "metrics.jsonl").write_text("")
    assert terminated(1) == Stopped.exit_code
    (saved,) = names(run)
    verify_checkpoint(run / "checkpoints" / saved)
    step = int(saved.removeprefix("step-"))
    monkeypatch.setenv("MMDIT_FAULT", "delay@manifest.json:begin")
    assert terminated(step + 1) == -signal.SIGTERM
    assert names(run) == [saved]


@pytest.mark.parametrize("what", ["optimizer.safetensors:written", "manifest.json:begin", "step-0000004:written"])
def test_a_disk_that_fills_up_leaves_the_last_checkpoint(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    config = recipe(steps=4)
    nth = 1 if "step" in what else 2  # the write of the second checkpoint
    monkeypatch.setenv("MMDIT_FAULT", f"full@{what}#{nth}")
    files._seen.clear()
    with pytest.raises(Stopped, match="the disk is full, in .*, got step 4 not saved; .* goes on from step 2"):
        train(config, tmp_path / "run")
    assert names(tmp_path / "run") == ["step-0000002"] and not list(tmp_path.rglob(f"{files.PART}*"))
    monkeypatch.delenv("MMDIT_FAULT")
    train(config, tmp_path / "run")
    train(config, tmp_path / "whole")
    assert state_of(tmp_path / "run") == state_of(tmp_path / "whole")


def test_room_is_asked_for_before_the_first_step(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10_000))
    with pytest.raises(Refused, match=r"got 0.0 MB free, expected .* MB: 3 checkpoints"):
        train(recipe(), tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_old_checkpoint_stays_until_the_new_one_verifies(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MMDIT_FAULT", "corrupt@manifest.json:written#2")
    files._seen.clear()
    with pytest.raises(Stopped, match=r"step 4 is not whole: .*(manifest.json|listed|missing|damaged)"):
        train(recipe(steps=4, keep_checkpoints=1), tmp_path / "run")
    monkeypatch.delenv("MMDIT_FAULT")
    assert names(tmp_path / "run") == ["step-0000002", "step-0000004"]
    verify_checkpoint(list_checkpoints(tmp_path / "run")[0])


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json", "ema/transformer/config.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_file_is_named_and_the_checkpoint_before_taken_when_asked(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, damage: str
) -> None:
    whole, path = state_of(trained), find_checkpoint(trained) / name
    if damage == "flipped":
        flip(path)
    elif damage == "cut":
        os.truncate(path, path.stat().st_size - 1)
    else:
        path.unlink()
    command = ("train", tmp_path / "recipe.yaml", "--out", trained)
    assert exit_code(*command) == Refused.exit_code
    told = capsys.readouterr().err
    assert str(path) in told and "--fallback" in told
    assert exit_code(*command, "--fallback") == 0
    assert state_of(trained) == whole and names(trained) == ["step-0000002", "step-0000004"]
    assert (trained / "checkpoints" / "damaged-step-0000004").is_dir()


def test_a_damaged_manifest_is_refused(trained: Path) -> None:
    newest = list_checkpoints(trained)[-1]
    for text in ("[]", '{"state.json": {}}', '{"state.json": {"size": "x", "sha256": ""}}', "{}", "\x00"):
        (newest / "manifest.json").write_text(text)
        with pytest.raises(Refused):
            verify_checkpoint(newest)


def test_a_second_trainer_is_told_at_once(recipe: Any, tmp_path: Path) -> None:
    def second(step: int, *_: object) -> None:
        with pytest.raises(Refused, match=f"the folder is in use, in .*, got process {os.getpid()} at work there"):
            train(recipe(steps=2), tmp_path / "run")

    train(recipe(steps=2), tmp_path / "run", progress=second)
    train(recipe(steps=2), tmp_path / "alone")
    assert state_of(tmp_path / "run") == state_of(tmp_path / "alone")


def test_a_place_that_cannot_be_written_is_refused(recipe: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 256)):
        with pytest.raises(Refused, match="the folder cannot be written"):
            train(recipe(steps=1), out)


def test_a_path_of_250_letters_and_spaces_in_any_locale(recipe: Any, tmp_path: Path) -> None:
    out = tmp_path / ("Kleider für den Sommer " * 20)[:240]
    (tmp_path / "recipe.yaml").write_text(dump_config(recipe(steps=1)))
    command = [sys.executable, "-m", "mmdit.tools.cli", "train", str(tmp_path / "recipe.yaml"), "--out", str(out)]
    done = subprocess.run(
        command, env={**os.environ, "LC_ALL": "C", "LANG": "C"}, capture_output=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert names(out) == ["step-0000001"]


def test_a_run_of_a_newer_version_is_refused_with_both(trained: Path, recipe: Any) -> None:
    change_state(find_checkpoint(trained), format=99, mmdit="9.9")
    with open(trained / "config.yaml", "a") as config:
        config.write("a_key_of_the_future: 1\n")
    with pytest.raises(Refused, match=r"newer format, .*got format 99 of mmdit 9\.9, expected at most format 1, which"):
        train(recipe(steps=4), trained)


def test_state_that_is_none_is_refused(trained: Path, recipe: Any) -> None:
    checkpoint = find_checkpoint(trained)
    for text in ("[]", "{}", '{"format": "x"}', "\x00"):
        (checkpoint / "state.json").write_text(text)
        sign(checkpoint)
        with pytest.raises(Refused, match="not a checkpoint's state"):
            train(recipe(steps=4), trained)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_stops_with_the_sizes_and_what_to_set(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    plain = loop._backward

    def backward(run: Any, batch: Any) -> torch.Tensor:
        if run.step == 4:
            raise error
        return plain(run, batch)

    monkeypatch.setattr(loop, "_backward", backward)
    said = r"out of memory, in .*step 4, on cpu, got 4 clips at once of 4 a process, latents 4x3x4x4; .*micro_batch=2"
    with pytest.raises(Stopped, match=said):
        train(recipe(), tmp_path)
    assert find_checkpoint(tmp_path).name == "step-0000004"


def test_another_failure_is_not_called_out_of_memory(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def backward(*_: Any) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(loop, "_backward", backward)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        train(recipe(), tmp_path)
