"""Faults of sources: each is named, none hangs, leads out of the file, or takes memory by its own measure."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from videos import levels, numbers, tarred, write

from mmdit.clips.decode import BadClip, ReadRequest, read_request
from mmdit.clips.probe import ProbeRequest, probe
from mmdit.clips.reader import ClipReader


def reasons(path: Path, **changes: Any) -> list[str]:
    """Why the file can be neither read nor probed."""
    found = []
    place = {name: changes[name] for name in ("offset", "length") if name in changes}
    works: list[Callable[[], Any]] = [
        lambda: read_request(ReadRequest(str(path), 1, (32, 64), 8.0, **changes)),
        lambda: probe(ProbeRequest(str(path), **place)),
    ]
    for work in works:
        with pytest.raises(BadClip) as error:
            work()
        found.append(error.value.reason)
        assert "\n" not in error.value.reason and str(path.parent) not in error.value.reason
    return found


# --- what holds no video


def test_no_frames(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.mp4", levels(4))
    for suffix in ("mp4", "mkv"):
        with av.open(str(whole)) as source, av.open(str(tmp_path / f"none.{suffix}"), "w") as target:
            target.add_stream_from_template(source.streams.video[0])
            target.start_encoding()
        for reason in reasons(tmp_path / f"none.{suffix}"):
            assert reason.startswith(("no frames", "not a video", "no picture size", "no video stream")), reason


def test_a_cover_picture_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound: Any = container.add_stream("aac", rate=44100)
        cover: Any = container.add_stream("mjpeg", rate=1)
        cover.height, cover.width, cover.pix_fmt = 32, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        audio.rate = 44100
        container.mux(cover.encode(av.VideoFrame.from_ndarray(levels(1)[0], format="rgb24")))
        container.mux(sound.encode(audio))
        container.mux(sound.encode(None))
    assert reasons(path) == ["no video stream: only a cover picture"] * 2


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    """A pipe in place of a video would be waited for."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert reasons(tmp_path / "pipe.mp4") == reasons(tmp_path / "folder.mp4") == ["not a regular file"] * 2
    assert reasons(tmp_path / "none.mp4") == ["no such file"] * 2


@pytest.mark.parametrize("size", [0, 1, 4, 11, 12, 13, 40])
@pytest.mark.parametrize(
    "head", [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\0\0\0\0WEBP", b"\0\0\0\x18ftypmp42", b"GIF89a"]
)
def test_nothing_but_the_beginning(tmp_path: Path, head: bytes, size: int) -> None:
    (tmp_path / "a.mp4").write_bytes((head + bytes(40))[:size])
    for reason in reasons(tmp_path / "a.mp4"):
        assert reason.split(":")[0] in ("empty file", "not a video", "damaged", "no video stream", "no picture size")


# --- parts of files


def test_a_part_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", levels(8))
    size = path.stat().st_size
    assert reasons(path, offset=10, length=size) == ["cut short: 10 bytes are missing"] * 2
    assert reasons(path, offset=size) == reasons(path, offset=0, length=0) == ["empty file"] * 2
    assert reasons(path, offset=size + 5, length=7) == ["cut short: 12 bytes are missing"] * 2
    for reason in reasons(path, offset=3):
        assert reason.startswith(("not a video", "no video stream")), reason


@pytest.mark.parametrize("inside", [False, True])
def test_a_play_list_leads_nowhere(tmp_path: Path, inside: bool) -> None:
    """Neither to a file nor to an address, not even from within a tar file."""
    write(tmp_path / "target.ts", levels(8))
    lists = {
        "files.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ntarget.ts\n#EXT-X-ENDLIST\n",
        "address.m3u8": "#EXTM3U\n#EXTINF:1,\nhttp://localhost:9/a.ts\n",
        "files.ffconcat": "ffconcat version 1.0\nfile target.ts\n",
        "address.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    }
    for name, text in lists.items():
        path, part = tmp_path / name, {}
        path.write_text(text)
        if name.startswith("files"):  # FFmpeg would follow it
            with av.open(str(path)) as container:
                assert container.streams.video[0].codec_context.width == 64
        if inside:
            offset, length = tarred(tmp_path / f"{name}.tar", path)[path.name]
            path, part = tmp_path / f"{name}.tar", {"offset": offset, "length": length}
        for reader in ("pyav", "decord"):
            assert all(reason.startswith("not a video") for reason in reasons(path, reader=reader, **part)), name


# --- damage


def test_a_reader_finds_what_is_cut_off_within_a_tar_file(tmp_path: Path) -> None:
    """The bytes of the next member are not read on into."""
    path = write(tmp_path / "a.ts", levels(24), options={"g": "24"})
    members = tarred(tmp_path / "all.tar", path, write(tmp_path / "b.ts", levels(24), options={"g": "24"}))
    offset, length = members["a.ts"]
    request = ReadRequest(str(tmp_path / "all.tar"), 8, (32, 64), 8.0, offset=offset, length=length // 2)
    with pytest.raises(BadClip, match=r"^(damaged|too short)"):
        read_request(request)
    assert numbers(read_request(ReadRequest(str(tmp_path / "all.tar"), 8, (32, 64), 8.0, offset=offset, length=length)))


# --- hanging, crashing

SABOTAGE = """
    import ctypes, os
    from mmdit.clips import child
    probe = child.probe
    def sabotaged(request):
        name = os.path.basename(request.path)
        if name == "hang.mp4":
            ctypes.PyDLL(None).sleep(1000)  # as a demuxer does: holding the interpreter's lock
        if name == "crash.mp4":
            os.abort()
        return probe(request)
    child.probe = sabotaged
"""


def test_probing_hangs_and_crashes_for_one_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(textwrap.dedent(SABOTAGE))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    names = ["a", "hang", "b", "crash", "c"]
    for name in names:
        write(tmp_path / f"{name}.mp4", levels(8))
    with ClipReader(2, deadline=2.0) as reader:
        found = list(reader.read_many([ProbeRequest(str(tmp_path / f"{name}.mp4")) for name in names]))
    said = [result.reason if isinstance(result, BadClip) else result.kind for result in found]
    assert said == ["video", "the decoder hangs: no clip in 2 s", "video", "the decoder crashed: signal 6", "video"]


# --- size and length


def test_huge_videos_are_refused_by_their_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mkv", np.zeros((1, 4330, 7680, 3), np.uint8), codec="ffv1", pix_fmt="gray")

    def decode(*_: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("mmdit.clips.shape.Shape.picture", decode)
    assert all(reason == "too large: 4330x7680, at most 33177600 pixels" for reason in reasons(path))


def test_long_videos_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mkv", levels(40), fps=8)
    monkeypatch.setattr("mmdit.clips.container.MAX_STAMPS", 24)
    for changes in ({"fps": 1.0}, {"stride": 9, "fps": 8.0}):
        with pytest.raises(BadClip, match="too many frames: more than 24 for one clip"):
            read_request(ReadRequest(str(path), 5, (32, 64), **changes))
    assert numbers(read_request(ReadRequest(str(path), 5, (32, 64), 8.0, stride=4))) == [0, 4, 8, 12, 16]


GROWTH = """
import resource, sys
from mmdit.clips.decode import ReadRequest, read_request
read_request(ReadRequest(sys.argv[1], 1, (32, 64), 24.0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_request(ReadRequest(sys.argv[1], 24, (32, 64), 24.0))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_frames_are_kept_at_the_target_size_only(tmp_path: Path) -> None:
    frame = np.zeros((1, 1080, 1920, 3), np.uint8)
    path = write(tmp_path / "a.mp4", np.broadcast_to(frame, (24, *frame.shape[1:])))
    done = subprocess.run([sys.executable, "-c", GROWTH, str(path)], capture_output=True, text=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 8 * frame.nbytes, done.stderr  # 24 pictures would be 24
