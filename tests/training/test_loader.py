"""Batches made ahead by workers are the batches; a worker that dies ends the run with a word."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mmdit.errors import Refused, Stopped
from mmdit.training.checkpoint import find_checkpoint
from mmdit.training.data import TrainingData
from mmdit.training.loader import batches
from mmdit.training.loop import train
from mmdit.training.sources import Sources


def data(config: Any) -> TrainingData:
    return TrainingData(Sources.open(config.data), "train", config)


def test_workers_change_nothing(recipe: Any) -> None:
    here = list(batches(data(recipe()), range(2, 7), 1, 2))
    there = list(batches(data(recipe(data__workers=2)), range(2, 7), 1, 2))
    assert [batch.places for batch in here] == [batch.places for batch in there]
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(here, there, strict=True))
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(here, there, strict=True))


def test_a_run_with_workers_is_the_run_without(recipe: Any, tmp_path: Path) -> None:
    for workers in (0, 2):
        train(recipe(data__workers=workers), tmp_path / str(workers))
    manifests = [next((tmp_path / run / "checkpoints").glob("*6/manifest.json")).read_bytes() for run in ("0", "2")]
    assert manifests[0] == manifests[1]


def test_a_killed_worker_ends_the_run_and_names_the_clips(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next(iter(DataLoader([torch.zeros(1)], num_workers=1)))  # torch's handler of dead children may be there already
    plain, parent = TrainingData.batch, os.getpid()

    def batch(self: TrainingData, step: int, slots: Any) -> Any:
        if step == 3 and os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, step, slots)

    monkeypatch.setattr(TrainingData, "batch", batch)
    with pytest.raises(Stopped, match=r"a loader worker was killed, in step [23], clips [0-9a-f]+.*data.workers"):
        train(recipe(data__workers=1, checkpoint_every=1), tmp_path)
    assert find_checkpoint(tmp_path).name in ("step-0000002", "step-0000003")  # batches made before may go with it


def test_what_a_worker_refuses_is_refused_in_one_line(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def batch(*_: Any) -> Any:
        raise Refused("a damaged shard", where="there")

    monkeypatch.setattr(TrainingData, "batch", batch)
    with pytest.raises(Refused, match="^a damaged shard, in there$"):
        next(batches(data(recipe(data__workers=1)), range(3), 0, 1))
