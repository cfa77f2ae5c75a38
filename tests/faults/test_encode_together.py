"""Several processes on one store: the same store as one process makes, whoever dies on the way."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from encoding import contents, encode, read_here
from pooled import Pooled
from videos import write_waves

from mmdit.errors import Refused
from mmdit.latents.encode import join
from mmdit.latents.store import LatentStore

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    write_waves(tmp_path / "videos", 14)
    (tmp_path / "videos" / "07.mp4").write_bytes(b"")
    return tmp_path / "videos"


@dataclass
class Together:
    """The processes of a launcher."""

    rank: int
    barrier: Any
    num_processes: int = 2

    @property
    def is_main_process(self) -> bool:
        return self.rank == 0

    def wait_for_everyone(self) -> None:
        self.barrier.wait(60)


def start(work: Callable[..., Any], *values: Any) -> Any:
    process = FORK.Process(target=work, args=values)
    process.start()
    return process


def store_of(videos: Path, store: Path) -> dict[str, bytes]:
    encode(videos, store)
    return contents(store)


def test_two_processes_make_the_store_of_one(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_here(monkeypatch)
    whole = store_of(videos, tmp_path / "whole")
    barrier = FORK.Barrier(2)
    other = Pooled(pause=0.1)
    process = start(lambda: encode(videos, tmp_path / "store", other, team=Together(1, barrier)))
    codec = Pooled(pause=0.1)
    report = encode(videos, tmp_path / "store", codec, team=Together(0, barrier))
    process.join(60)
    assert process.exitcode == 0
    assert contents(tmp_path / "store") == whole
    assert 0 < codec.clips < 13 and (report.kept, report.skipped, report.encoded) == (13, 1, 14)


def test_what_a_killed_process_left_is_made_by_the_others(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_here(monkeypatch)
    whole = store_of(videos, tmp_path / "whole")
    store = tmp_path / "store"
    barrier = FORK.Barrier(2)

    def work_and_be_killed() -> None:
        class Killed(Pooled):
            def encode(self, clips: Any) -> Any:
                if self.clips:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().encode(clips)

        encode(videos, store, Killed(), team=Together(1, barrier))

    process = start(work_and_be_killed)

    @dataclass
    class Left(Together):
        """Nobody waits for the dead at the end."""

        waited: int = 0

        def wait_for_everyone(self) -> None:
            self.waited += 1
            if self.waited == 1:
                self.barrier.wait(60)

    encode(videos, store, Pooled(pause=0.1), team=Left(0, barrier))
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert contents(store) == whole


def test_nobody_else_gets_in_and_stragglers_are_waited_for(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While processes of a run are at work, even after their main one was killed, no other run begins."""
    read_here(monkeypatch)
    store, barrier = tmp_path / "store", FORK.Barrier(2)
    main = start(lambda: encode(videos, store, Pooled(pause=0.5), team=Together(0, barrier)))
    other = start(lambda: encode(videos, store, Pooled(pause=0.5), team=Together(1, barrier)))
    while not list((store / ".work").glob("*.claim")):
        time.sleep(0.01)
    time.sleep(0.2)
    with pytest.raises(Refused, match=f"folder is in use.*process {main.pid} at work"):
        encode(videos, store)
    os.kill(main.pid, signal.SIGKILL)
    main.join(60)
    with pytest.raises(Refused, match="folder is in use"):
        encode(videos, store)
    os.kill(other.pid, signal.SIGKILL)
    other.join(60)
    encode(videos, store)
    assert contents(store) == store_of(videos, tmp_path / "whole")


def test_another_codec_cannot_join(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_here(monkeypatch)
    refused: list[str] = []

    def engine(work: Any) -> None:
        with pytest.raises(Refused, match="not the codec of this run.*got other, expected pooled") as error:
            join(work.folder, Pooled("other"))
        refused.append(str(error.value))

    encode(videos, tmp_path / "store", engine=engine)
    assert refused and len(LatentStore.open(tmp_path / "store")) == 13


def test_torchrun_makes_the_store_of_one_process(videos: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    words = [str(videos), "--frames", "5", "--size", "32x48", "--shard", "3", "--batch", "2", "--max-skipped", "1"]
    limits = {"OMP_NUM_THREADS": "1"}
    one = [sys.executable, str(root / "tools" / "encode.py")]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *one[1:]]
    said = []
    for name, command in (("one", one), ("two", two)):
        done = subprocess.run(
            [*command, *words, "--out", str(tmp_path / name)], env=os.environ | limits, timeout=240,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        said.append(done.stdout)
    one_store, two_stores = contents(tmp_path / "one"), contents(tmp_path / "two")
    facts = [json.loads(found.pop("store.json")) for found in (one_store, two_stores)]
    assert [fact.pop("made")["command"][-1] for fact in facts] == [str(tmp_path / "one"), str(tmp_path / "two")]
    assert one_store == two_stores and facts[0] == facts[1]
    assert said[1].count("store: ") == 1  # one process speaks for all
