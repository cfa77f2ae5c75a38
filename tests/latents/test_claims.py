"""Claims: each shard is made by one process, and what a dead process held is free."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mmdit.latents.claims import Claims
from mmdit.latents.layout import SHARDS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / SHARDS).mkdir()
    (tmp_path / ".work").mkdir()
    return tmp_path


def claims(folder: Path) -> Claims:
    return Claims(folder, folder / ".work")


def hold(folder: Path, numbers: list[int], pipe: Any) -> None:
    mine = claims(folder)
    pipe.send(list(mine.take(numbers)))
    time.sleep(60)


def test_a_shard_is_claimed_once_and_not_when_it_is_done(folder: Path) -> None:
    (folder / SHARDS / "00001.parquet").touch()
    mine, others = claims(folder), claims(folder)
    taking = mine.take([0, 1, 2, 3])
    assert [next(taking), next(taking)] == [0, 2]
    assert list(others.take([0, 1, 2, 3])) == [3]  # what is not asked for yet is not claimed yet
    assert list(taking) == [] and list(mine.take([0, 1, 2, 3])) == []
    mine.release(0)
    assert list(others.take([0, 1, 2, 3])) == [0]


def test_a_shard_done_in_the_last_moment_is_not_made_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = claims(folder)
    answers = iter([False, True])  # when it was looked at, and once the claim was there
    monkeypatch.setattr(mine, "is_done", lambda number: next(answers))
    assert list(mine.take([0])) == []
    with claims(folder) as others:
        assert list(others.take([0])) == [0]  # the claim was given back


def test_the_claims_of_a_killed_process_are_free(folder: Path) -> None:
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(folder, [0, 1], theirs))
    process.start()
    assert ours.recv() == [0, 1]
    mine = claims(folder)
    assert list(mine.take([0, 1, 2])) == [2]
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert list(mine.take([0, 1, 2])) == [0, 1]
