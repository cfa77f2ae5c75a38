"""Faults while encoding: kills at every write, bad files, hanging decoders, two encoders on one folder."""

import multiprocessing
import os
import random
import signal
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from encoding import contents, encode, read_here
from kills import killed_at
from pooled import Pooled

from mmdit.clips.video import write_clip
from mmdit.errors import OverBudget, Refused
from mmdit.latents.store import LatentStore


def write(path: Path, number: int) -> None:
    y, x = np.mgrid[0:32, 0:48]
    frames = [np.stack([np.sin((x * c + y * number + t) / 9) * 100 + 128 for c in range(3)], -1) for t in range(3)]
    write_clip(path, np.array(frames).astype(np.uint8), 8)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    for number in range(5):
        write(tmp_path / "videos" / f"{number}.mp4", number)
    (tmp_path / "videos" / "2.mp4").write_bytes(b"")
    return tmp_path / "videos"


def run(videos: Path, store: Path, codec: Any = None, **changes: Any) -> Any:
    return encode(videos, store, codec, **{"frames": 3, "max_skipped": 1, "dtype": "float16"} | changes)


def tables(folder: Path) -> list[bytes] | None:
    """What a reader finds there: nothing, or a whole store with all its latents."""
    try:
        store = LatentStore.open(folder)
    except Refused:
        return None
    assert all(part.isfinite().all() for row in range(len(store)) for part in store.latent(row))
    return [
        (folder / name).read_bytes() for name in ("store.json", "index.parquet", "shards.parquet", "quarantine.parquet")
    ]


def walk(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[[Path], Any], store: Path, work: Callable[[Path], Any]
) -> int:
    """Kills `work` at its first write point, its second, ... and lets it go on; each end must be the same. Returns how
    many points there are."""
    read_here(monkeypatch)
    begin(store / "whole")
    before = tables(store / "whole")
    work(store / "whole")
    whole = contents(store / "whole")
    point = 0
    while True:
        point += 1
        folder = store / str(point)
        begin(folder)
        killed = killed_at(monkeypatch, f"kill@#{point}", lambda: work(folder))  # noqa: B023
        assert tables(folder) in (None, before, tables(store / "whole")), point
        work(folder)
        assert contents(folder) == whole, point
        if not killed:
            return point - 1


def test_killed_at_every_write_of_a_new_store(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = walk(monkeypatch, lambda store: None, tmp_path / "stores", lambda store: run(videos, store))
    assert points == 3 * (1 + 2 * 2 + 4)  # sources, two files a shard, three tables, store.json; three stages each
    store = LatentStore.open(tmp_path / "stores" / "1")
    assert len(store) == 4 and store.latent(3)[0].isfinite().all()


def test_killed_at_every_write_of_an_added_video(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("0.mp4", "1.mp4", "2.mp4"):
        (few / name).write_bytes((videos / name).read_bytes())
    points = walk(monkeypatch, lambda store: run(few, store), tmp_path / "stores", lambda store: run(videos, store))
    assert points == 3 * (1 + 2 + 4)


def test_killed_at_every_write_of_a_changed_table(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many rows as before: old and new files must not be taken for one store."""
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("path,split\n" + "".join(f"{number}.mp4,train\n" for number in range(5)))
    new.write_text("path,split\n" + "".join(f"{number}.mp4,{'train' if number else 'test'}\n" for number in range(5)))
    points = walk(
        monkeypatch,
        lambda store: run(videos, store, captions=old),
        tmp_path / "stores",
        lambda store: run(videos, store, captions=new),
    )
    assert points == 3 * 4


def test_a_killed_run_does_at_most_a_shard_again(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_here(monkeypatch)
    assert killed_at(monkeypatch, "kill@00001.parquet:written", lambda: run(videos, tmp_path / "store"))
    assert (tmp_path / "store" / "shards" / "00001.safetensors").exists()
    with pytest.raises(Refused, match="an unfinished one"):
        LatentStore.open(tmp_path / "store")
    assert run(videos, tmp_path / "store").encoded == 2


def test_killed_at_a_moment_with_its_decoders(videos: Path, tmp_path: Path) -> None:
    """A real kill -9, decoding processes and all: nothing is left running, and the end is the same."""
    run(videos, tmp_path / "whole")
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(videos, tmp_path / "store", Pooled(pause=0.3))
    )
    process.start()
    assert process.pid is not None
    while not list((tmp_path / "store" / "shards").glob("*.parquet")) and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    assert run(videos, tmp_path / "store").kept == 4
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_killed_at_twenty_moments(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spread over the time that a run takes, each at a random place of its twentieth; some runs are killed twice."""
    read_here(monkeypatch)
    began = time.monotonic()
    run(videos, tmp_path / "whole", Pooled(pause=0.05))
    seconds = time.monotonic() - began
    moments = random.Random(0)
    for number in range(20):
        for _ in range(1 + number % 2):
            process = multiprocessing.get_context("fork").Process(
                target=run, args=(videos, tmp_path / str(number), Pooled(pause=0.05))
            )
            process.start()
            time.sleep(seconds * (number + moments.random()) / 20)
            process.kill()
            process.join(60)
        run(videos, tmp_path / str(number))
        assert contents(tmp_path / str(number)) == contents(tmp_path / "whole"), number


def test_bad_files_are_counted_by_reason(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_here(monkeypatch)
    whole = (videos / "0.mp4").read_bytes()
    (videos / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (videos / "text.mp4").write_text("this is no video\n" * 100)
    (videos / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(30_000))
    audio_only(videos / "audio.mp4")
    with pytest.raises(OverBudget, match=r"got 5 of 9.*at most 4") as error:
        run(videos, tmp_path / "store", max_skipped=4)
    assert error.value.exit_code == 3
    rows = pyarrow.parquet.read_table(tmp_path / "store" / "quarantine.parquet").to_pylist()
    reasons = {row["source"]: row["reason"] for row in rows}
    assert reasons.keys() == {"2.mp4", "audio.mp4", "cut.mp4", "noise.mp4", "text.mp4"}
    assert reasons["2.mp4"] == "empty file" and reasons["audio.mp4"] == "no video stream"
    assert reasons["text.mp4"].startswith("not a video:") and reasons["noise.mp4"].startswith("not a video:")
    assert reasons["cut.mp4"].startswith(("not a video:", "damaged:", "too short:"))
    assert len(LatentStore.open(tmp_path / "store")) == 4
    assert run(videos, tmp_path / "store", max_skipped=5).skipped == 5


def audio_only(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        sound.rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))


SABOTAGE = """
    import ctypes, os
    from mmdit.clips import decode
    read = decode.read_request
    def sabotaged(request):
        if os.path.basename(request.path) == "1.mp4":
            ctypes.PyDLL(None).sleep(1000)  # as a decoder does: holding the interpreter's lock
        if os.path.basename(request.path) == "3.mp4":
            os.abort()
        return read(request)
    decode.read_request = sabotaged
"""


def test_hanging_and_crashing_decoders_cost_their_clips(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(SABOTAGE))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"))
    report = run(videos, tmp_path / "store", deadline=3.0, max_skipped=3)
    assert report.kept == 2
    assert report.reasons == {"empty file": 1, "the decoder hangs": 1, "the decoder crashed": 1}
    monkeypatch.delenv("PYTHONPATH")
    assert run(videos, tmp_path / "store", retry_skipped=True).kept == 4


def test_two_encoders_on_one_folder(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_here(monkeypatch)
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(videos, tmp_path / "store", Pooled(pause=0.5))
    )
    process.start()
    lock = tmp_path / "store" / ".lock"
    while process.is_alive() and not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    with pytest.raises(Refused, match=rf"the folder is in use.*process {process.pid} at work"):
        run(videos, tmp_path / "store")
    process.join(60)
    assert process.exitcode == 0
    assert run(videos, tmp_path / "store").encoded == 0


def test_a_flipped_byte_while_writing_differs_from_the_recorded_hash(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `sha256` of a shard is for: it is of the bytes that were meant to be written."""
    import hashlib

    read_here(monkeypatch)
    monkeypatch.setenv("MMDIT_FAULT", "corrupt@00000.safetensors:written")
    run(videos, tmp_path / "store")
    shards = LatentStore.open(tmp_path / "store").shards
    same = [
        hashlib.sha256((tmp_path / "store" / "shards" / shard["name"]).read_bytes()).hexdigest() == shard["sha256"]
        for shard in shards.values()
    ]
    assert same == [False, True]
