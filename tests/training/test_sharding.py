"""Weights in parts on two processes: other launches go on from their checkpoints, and what does not go is refused."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import end_pair, start_pair
from runs import sign
from safetensors.torch import load_file, save_file

from mmdit import files
from mmdit.errors import Refused, Stopped
from mmdit.models import DiT
from mmdit.training.checkpoint import find_checkpoint, list_checkpoints, verify_checkpoint
from mmdit.training.config import RunConfig
from mmdit.training.loop import train
from mmdit.training.shards import PLACES, read_whole, shapes_in

ROOT = Path(__file__).parents[2]
CHANGES: dict[str, Any] = {"steps": 10, "checkpoint_every": 10, "keep_checkpoints": 3, "optimizer__muon_lr": None}
WEIGHTS = ("transformer/diffusion_pytorch_model", "ema/transformer/diffusion_pytorch_model", "text_encoder/model")


def train_to(last: int, config: RunConfig, run: Path) -> None:
    with pytest.raises(Stopped, match="asked to stop"):
        train(config, run, progress=lambda step, *_: os.kill(os.getpid(), signal.SIGTERM) if step == last else None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, recipe: Callable[..., RunConfig]) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    config = recipe(**CHANGES)
    (folder / "recipe.json").write_text(config.model_dump_json())
    train(config, folder / "one")
    train_to(3, config, folder / "chain")
    train(recipe(**CHANGES | {"steps": 2}, seed=1, conditions={"labels": True}), folder / "source")
    pair = end_pair(start_pair(ROOT / "tests" / "helpers" / "sharded_trainers.py", folder))
    assert [code for code, _ in pair] == [0, 0], pair[0][1][-3000:] + pair[1][1][-3000:]
    shutil.copytree(folder / "chain", folder / "chain_as_left")
    shutil.copytree(folder / "back", folder / "back_as_left")
    train(config, folder / "chain")
    train(config, folder / "back")
    return folder


def log(run: Path, key: str) -> list[Any]:
    return [json.loads(line)[key] for line in (run / "metrics.jsonl").read_text().splitlines()]


def said(runs: Path, key: str) -> list[Any]:
    return [json.loads((runs / f"said-{rank}.json").read_text())[key] for rank in (0, 1)]


@pytest.mark.parametrize("run", ["chain", "back"])
def test_any_launch_goes_on_from_any(runs: Path, run: str) -> None:
    """chain: one process, parts, copies, one process; back: copies, parts, one process."""
    assert log(runs / run, "step") == list(range(1, 11))
    assert log(runs / run, "loss") == pytest.approx(log(runs / "one", "loss"), abs=1e-6)
    for name in WEIGHTS:
        here, there = (load_file(find_checkpoint(runs / r) / f"{name}.safetensors") for r in ("one", run))
        assert here.keys() == there.keys()
        for key, value in here.items():
            torch.testing.assert_close(there[key], value, rtol=0, atol=1e-5)


def test_parts_lie_in_files_that_say_where(runs: Path) -> None:
    checkpoint = find_checkpoint(runs / "back_as_left")
    assert checkpoint.name == "step-0000006" and not (checkpoint / "optimizer.safetensors").exists()
    names = [path.name for path in sorted((checkpoint / "optimizer").iterdir())]
    assert names == ["shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors"]
    parts = [load_file(checkpoint / "optimizer" / name) for name in names]
    sizes = [sum(value.numel() for value in part.values()) for part in parts]
    assert 0.4 < sizes[1] / sum(sizes) < 0.6  # each holds its half, and none the whole
    weights = sum(w.numel() for w in DiT.from_pretrained(checkpoint / "transformer").parameters())
    weights += sum(w.numel() for w in load_file(checkpoint / "text_encoder" / "model.safetensors").values())
    assert 2 * weights <= sum(sizes) < 2.1 * weights
    assert not list(runs.rglob(f"{files.PART}*"))


def test_a_run_of_parts_begins_from_weights(recipe: Any, runs: Path, tmp_path: Path) -> None:
    config = recipe(**CHANGES | {"steps": 2}, init_from=str(runs / "source"))
    train(config, tmp_path)
    assert log(runs / "begun", "loss") == pytest.approx(log(tmp_path, "loss"), abs=1e-6)
    assert log(runs / "begun", "loss")[0] != pytest.approx(log(runs / "one", "loss")[0], abs=1e-6)


def test_bfloat16_in_parts_stays_near_float32(runs: Path) -> None:
    """With micro batches and blocks that are computed again."""
    assert log(runs / "bfloat16", "loss") == pytest.approx(log(runs / "one", "loss"), rel=0.02)
    assert log(runs / "bfloat16", "loss")[-1] != pytest.approx(log(runs / "one", "loss")[-1], abs=1e-6)
    weights = load_file(find_checkpoint(runs / "bfloat16") / f"{WEIGHTS[0]}.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_parts_compile(recipe: Any, runs: Path, tmp_path: Path) -> None:
    train(recipe(**CHANGES | {"steps": 2}, data__image_share=0.0), tmp_path)
    assert min(said(runs, "compiled")) > 0
    assert log(runs / "compiled", "loss") == pytest.approx(log(tmp_path, "loss"), abs=1e-6)


def test_what_does_not_go_in_parts_is_refused(runs: Path) -> None:
    assert said(runs, "muon")[0] == said(runs, "muon")[1]
    assert "got sharding=full and optimizer.muon_lr," in said(runs, "muon")[0]
    assert "set optimizer.muon_lr=null, or sharding=none" in said(runs, "muon")[0]
    assert "precision" in said(runs, "float16")[1]


def test_a_disk_that_is_full_for_one_process_stops_both(runs: Path) -> None:
    first, second = said(runs, "full")
    assert "the disk is full" in second and "got step 2 not saved" in second
    assert "got step 2 not saved: another process, which says why" in first
    assert [path.name for path in list_checkpoints(runs / "full")] == ["step-0000001"]
    verify_checkpoint(list_checkpoints(runs / "full")[0])


def test_parts_with_gaps_or_hostile_places_are_refused(recipe: Any, runs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(runs / "back_as_left", tmp_path / "run")
    folder = find_checkpoint(run) / "optimizer"
    whole = read_whole(folder)
    path = folder / "shard-00001-of-00002.safetensors"
    parts, name = load_file(path), "0.1.exp_avg"
    for places in ('{"0.1.exp_avg": {"saved_offsets": [1000000000000000000]}}', "[[", '{"0.1.exp_avg": 5}', "{}"):
        save_file({name: parts[name]}, path, metadata={PLACES: places})
        with pytest.raises(Refused, match="shards that"):
            shapes_in(folder)
    path.unlink()
    sign(folder.parent)
    with pytest.raises(Refused, match=r"state of another optimizer, .*expected \("):
        train(recipe(**CHANGES), run)
    assert whole[name].shape != parts[name].shape
