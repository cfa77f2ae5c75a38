"""Two processes train as one does, decide alike, and take up each other's checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from pairs import free_port
from safetensors.torch import load_file

from mmdit.config import parse_config
from mmdit.errors import Refused
from mmdit.pipelines.training_samples import prepare_samples
from mmdit.training.checkpoint import find_checkpoint, list_checkpoints
from mmdit.training.config import RunConfig
from mmdit.training.loop import train
from mmdit.training.shards import read_whole

ROOT = Path(__file__).parents[2]
LIMIT = 150
STANDALONE = ("--standalone", "--nproc-per-node", 2)
CHANGES: dict[str, Any] = {
    "steps": 10, "checkpoint_every": 5, "keep_checkpoints": 3, "validate_every": 10, "optimizer__muon_lr": None,
    "ema_decay": [0.9, 0.5], "samples": {"every": 5, "steps": 2, "count": 3},
}  # fmt: skip


def torchrun(*words: object, start: tuple[object, ...] = STANDALONE) -> "subprocess.CompletedProcess[str]":
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    if not torch.accelerator.is_available():
        env.pop("ACCELERATE_USE_CPU")  # nobody who has a CPU alone sets it
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, start), *map(str, words)]
    return subprocess.run(command, env=env, timeout=LIMIT, capture_output=True, text=True)


def forget_the_end(run: Path) -> None:
    """Leaves a run as it was at step 5."""
    shutil.rmtree(list_checkpoints(run)[-1])


@pytest.fixture(scope="module", params=["none", "full"])
def runs(tmp_path_factory: pytest.TempPathFactory, recipe: Callable[..., RunConfig], request: Any) -> Path:
    """Runs with the weights whole on each process (DDP), then with a part on each (FSDP2)."""
    folder = tmp_path_factory.mktemp("runs")
    config = recipe(**CHANGES, sharding=request.param)
    (folder / "recipe.json").write_text(config.model_dump_json())
    train(config, folder / "one", sample=prepare_samples)
    shutil.copytree(folder / "one", folder / "one_then_two")
    forget_the_end(folder / "one_then_two")
    done = torchrun(ROOT / "tests" / "helpers" / "two_trainers.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    forget_the_end(folder / "two_then_one")
    train(config, folder / "two_then_one", sample=prepare_samples)
    return folder


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """Weights, averages and optimizer state of two checkpoints, whole ones or parts, to 1e-5."""
    for path in one.rglob("*.safetensors"):
        name = path.relative_to(one)
        here, there = (
            load_file(path),
            read_whole((other / name).parent if (other / name).exists() else other / name.stem),
        )
        assert here.keys() == there.keys()
        for key, value in here.items():
            torch.testing.assert_close(there[key], value, rtol=0, atol=1e-5, msg=lambda text: f"{name} {key}: {text}")  # noqa: B023


def log(run: Path, key: str) -> list[Any]:
    return [json.loads(line)[key] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("other", ["two", "parts", "one_then_two", "two_then_one"])
def test_the_number_of_processes_changes_nothing(runs: Path, other: str) -> None:
    """parts: two processes that each take one clip at a time."""
    assert log(runs / other, "step") == list(range(1, 11))
    assert log(runs / other, "loss") == pytest.approx(log(runs / "one", "loss"), abs=1e-6)
    assert log(runs / other, "grad_norm") == pytest.approx(log(runs / "one", "grad_norm"), rel=1e-5)
    assert_same_checkpoint(find_checkpoint(runs / "one"), find_checkpoint(runs / other))


@pytest.mark.parametrize("other", ["two", "parts"])
def test_held_out_losses_and_samples_are_those_of_one_process(runs: Path, other: str) -> None:
    wanted, got = (json.loads((runs / name / "metrics.jsonl").read_text().splitlines()[-1]) for name in ("one", other))
    assert got["val_loss"] == pytest.approx(wanted["val_loss"], abs=1e-6)
    for key in ("val_noise", "val_labels"):
        assert got[key] == pytest.approx(wanted[key], abs=1e-6)
    for step in ("step-0000005", "step-0000010"):
        one, two = (runs / name / "samples" / step for name in ("one", other))
        assert sorted(path.name for path in two.iterdir()) == ["00.mp4", "01.mp4", "02.mp4", "samples.json"]
        assert (one / "samples.json").read_text() == (two / "samples.json").read_text()
        for name in ("00.mp4", "01.mp4", "02.mp4"):  # weights differ in their last bits
            assert abs(frames(one / name) - frames(two / name)).max() <= 8


def frames(clip: Path) -> np.ndarray:
    with av.open(clip) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]).astype(int)


def test_processes_differ_in_their_clips(runs: Path) -> None:
    """What makes the comparison above worth something: one process alone takes the whole batch, two take halves."""
    assert log(runs / "two", "loss") != log(runs / "one", "loss")


def test_a_bad_clip_on_one_process_is_skipped_on_both(runs: Path) -> None:
    assert log(runs / "bad", "skipped") == [0, 0, 1, 1]
    assert None not in log(runs / "bad", "grad_norm")  # nothing but the flag tells the first process
    assert [value is None for value in log(runs / "bad", "loss")] == [False, False, True, False]
    mine, others = (torch.load(runs / f"bad-{number}.pt", weights_only=True) for number in (0, 1))
    assert all(torch.equal(mine[key], others[key]) and mine[key].isfinite().all() for key in mine)


def test_bad_clips_that_stop_a_run_are_named_by_both(runs: Path) -> None:
    said = [(runs / f"stopped-{number}.txt").read_text() for number in (0, 1)]
    assert said[0] == said[1] and "2 such steps in a row" in said[0]
    assert f"the last on clips {(runs / 'bad_clips.txt').read_text()};" in said[0]


def test_a_batch_that_does_not_divide_is_refused(runs: Path) -> None:
    line = (runs / "refused-1.txt").read_text()
    assert line.startswith("the batch does not divide over the processes, got 3 clips on 2 processes, expected a multi")


def test_the_group_ends_before_the_interpreter(runs: Path) -> None:
    """One of its threads that then still holds a tensor would abort the process, here after training was refused."""
    said = [(runs / f"threads-{number}.txt").read_text() for number in (0, 1)]
    assert all("python" in threads for threads in said)
    if json.loads((runs / "recipe.json").read_text())["sharding"] == "none":  # DTensor's caches keep the group
        assert not any("gloo" in threads for threads in said)


def test_torchrun_runs_the_program_on_one_node_and_on_two(runs: Path, tmp_path: Path) -> None:
    """Copies of the weights in two processes of one node; parts of them on two nodes, each with its own torchrun."""
    shutil.copy(runs / "recipe.json", tmp_path / "recipe.yaml")  # JSON is YAML
    words = (ROOT / "tools" / "train.py", tmp_path / "recipe.yaml", "--out", tmp_path / "run")
    if parse_config(RunConfig, json.loads((runs / "recipe.json").read_text()), where="it").sharding == "none":
        done = [torchrun(*words)]
    else:
        port = free_port()
        places = [
            ("--nnodes", 2, "--node-rank", i, "--master-addr", "127.0.0.1", "--master-port", port) for i in (0, 1)
        ]
        with ThreadPoolExecutor() as nodes:
            done = list(nodes.map(lambda place: torchrun(*words, start=(*place, "--nproc-per-node", 1)), places))
    assert [node.returncode for node in done] == [0] * len(done), done[0].stderr[-3000:]
    assert "".join(node.stdout for node in done).count("trained: ") == 1  # one process speaks for all
    assert log(tmp_path / "run", "loss") == log(runs / "two", "loss")


def test_a_folder_in_use_is_refused(recipe: Callable[..., RunConfig], tmp_path: Path) -> None:
    def intrude(step: int, *_: object) -> None:
        with pytest.raises(Refused, match="folder is in use"):
            train(recipe(), tmp_path)

    train(recipe(steps=1), tmp_path, progress=intrude)
