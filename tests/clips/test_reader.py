"""Reading in child processes: order, hanging and crashing decoders, how far ahead."""

import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from videos import levels, numbers, write

from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.clips.reader import ClipReader

SABOTAGE = """
    import os, sys, time
    from mmdit.clips import decode
    read = decode.read_request
    def sabotaged(request):
        name = os.path.basename(request.path)
        if name.startswith("hang"):
            import ctypes
            ctypes.PyDLL(None).sleep(1000)  # as a decoder does: holding the interpreter's lock
        if name.startswith("crash"):
            os.abort()
        if name.startswith("once") and not os.path.exists(request.path + ".seen"):
            open(request.path + ".seen", "w").close()
            os.kill(os.getpid(), 9)
        if name.startswith("memory"):
            bytearray(16 << 30)
        return read(request)
    decode.read_request = sabotaged
"""


@pytest.fixture
def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Children hang at hang*.mp4, crash at crash*.mp4, are killed once at once*.mp4."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(textwrap.dedent(SABOTAGE))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    yield


def test_results_in_order_whatever_happens(tmp_path: Path, sabotage: None) -> None:
    names = ["a", "hang1", "b", "crash1", "once1", "memory1", "gone", "c"]
    for name in names:
        if name != "gone":
            write(tmp_path / f"{name}.mp4", levels(16))
    requests = [ReadRequest(str(tmp_path / f"{name}.mp4"), 5, (32, 64), 8.0) for name in names]
    with ClipReader(2, deadline=3.0) as reader:
        results = dict(zip(names, reader.read_many(requests), strict=True))
        again = list(reader.read_many(requests[:1]))
    for name in ("a", "b", "c", "once1"):
        result = results[name]
        assert isinstance(result, Decoded) and numbers(result) == [0, 3, 6, 9, 12], (name, result)
    assert isinstance(again[0], Decoded)
    reasons = {name: result.reason for name, result in results.items() if isinstance(result, BadClip)}
    assert reasons == {
        "hang1": "the decoder hangs: no clip in 3 s",
        "crash1": "the decoder crashed: signal 6",
        "memory1": "too large: needs more than 4 GiB",
        "gone": "no such file",
    }


def test_leaving_early_ends_the_children(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", levels(16))
    requests = [ReadRequest(str(tmp_path / "a.mp4"), 5, (32, 64), 8.0)] * 100
    with ClipReader(2, ahead=3) as reader:
        for _ in reader.read_many(requests):
            children = list(reader._children)
            break
    assert children and all(child.process.poll() is not None for child in children)


def test_no_more_than_asked_is_read_ahead(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4", levels(16))
    handed = 0

    def requests() -> Iterator[ReadRequest]:
        nonlocal handed
        for _ in range(50):
            handed += 1
            yield ReadRequest(str(tmp_path / "a.mp4"), 5, (32, 64), 8.0)

    with ClipReader(1, ahead=4) as reader:
        results = reader.read_many(requests())
        for taken in (1, 2):
            next(results)
            while handed < taken + 4:  # they are read although nobody asks for them yet
                time.sleep(0.01)
        time.sleep(0.3)
        assert handed == 6


def test_children_load_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, mmdit.clips.reader; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ))
    assert done.stdout.strip() == "False", done.stderr
