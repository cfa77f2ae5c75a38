"""What is said of a file before any clip is read: kind, length, rate and size as shown."""

import struct
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from videos import counters, edited, levels, tarred, turned, write

from mmdit.clips import probe as probe_module
from mmdit.clips.decode import BadClip, Decoded, ReadRequest, read_request
from mmdit.clips.probe import Probed, ProbeRequest, probe
from mmdit.clips.reader import ClipReader


def probed(path: Path, offset: int = 0, length: int | None = None) -> Probed:
    return probe(ProbeRequest(str(path), offset, length))


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm", "avi", "ts", "gif"])
@pytest.mark.parametrize("long", [False, True])
def test_every_container(tmp_path: Path, suffix: str, long: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """`long`: the end is looked for near where the header says that it is."""
    codec, pixels = {"webm": ("libvpx", "yuv420p"), "gif": ("gif", "rgb8")}.get(suffix, ("libx264", "yuv420p"))
    path = write(tmp_path / f"a.{suffix}", levels(40), fps=8, codec=codec, pix_fmt=pixels, options={"g": "8"})
    if long:
        monkeypatch.setattr(probe_module, "FRONT_PACKETS", 10)
    found = probed(path)
    assert found.kind == "video" and found.size == (32, 64)
    assert found.duration == pytest.approx(5.0, abs=0.02) and found.fps == pytest.approx(8, rel=0.05)
    assert found.frames == 40 or (long and found.frames is None and suffix in ("mkv", "webm", "ts"))
    members = tarred(tmp_path / "all.tar", path, path)
    assert probed(tmp_path / "all.tar", *members[path.name]) == found


def test_only_the_ends_of_a_long_video_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", levels(40), fps=2, options={"g": "2"})
    monkeypatch.setattr(probe_module, "FRONT_PACKETS", 5)
    read: list[Any] = []
    packets = probe_module.shown_packets

    def counted(*arguments: Any) -> Iterator[Any]:
        for found in packets(*arguments):
            read.append(found)
            yield found

    monkeypatch.setattr(probe_module, "shown_packets", counted)
    assert probed(path) == Probed("video", 20.0, 40, 2.0, (32, 64))
    assert len(read) <= 5 + 8


def test_as_shown(tmp_path: Path) -> None:
    path = turned(write(tmp_path / "a.mp4", levels(4, 48, 80), aspect=Fraction(3, 2)), (0, 1, -1, 0))
    assert probed(path).size == (120, 48)


def test_edit_lists(tmp_path: Path) -> None:
    path = edited(write(tmp_path / "a.mp4", counters(60), options={"g": "30"}), [(1.0, 17 / 24)])
    found = probed(path)
    assert found.frames == 24 and found.duration == pytest.approx(1.0) and found.fps == pytest.approx(24)


def test_an_edit_list_of_a_long_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header counts frames that are not shown: then their number is not known."""
    path = edited(write(tmp_path / "a.mp4", counters(120), fps=12, options={"g": "12"}), [(6.0, 2.0)])
    monkeypatch.setattr(probe_module, "FRONT_PACKETS", 10)
    found = probed(path)
    assert found.duration == pytest.approx(6.0) and found.frames is None


def test_variable_rate(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", levels(6), pts=[0, 100, 200, 1000, 1100, 1500])
    found = probed(path)
    assert found.frames == 6 and found.fps == pytest.approx(5 / 1.5) and found.duration >= 1.5


@pytest.mark.parametrize("front", [1000, 10])
def test_a_header_that_lies_is_not_believed(tmp_path: Path, front: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too long, too short, or cut off: what the packets say, in agreement with what can be read."""
    monkeypatch.setattr(probe_module, "FRONT_PACKETS", front)
    path = write(tmp_path / "a.mkv", levels(48), fps=8, options={"g": "8"})
    whole = path.read_bytes()
    at = whole.index(b"\x44\x89\x88") + 3  # Matroska: Duration, eight bytes of a float
    for said in (1_000.0, 3_000.0, 60_000.0):  # milliseconds
        data = bytearray(whole)
        data[at : at + 8] = struct.pack(">d", said)
        path.write_bytes(data)
        assert probed(path).duration == pytest.approx(6.0, abs=0.01), said
    front_file = tmp_path / "front.mp4"
    with av.open(str(path)) as source, av.open(str(front_file), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    front_file.write_bytes(front_file.read_bytes()[: front_file.stat().st_size * 2 // 3])
    found = probed(front_file)
    assert 1.0 < found.duration < 5.0
    last = read_request(ReadRequest(str(front_file), 2, (32, 64), 1 / (found.duration - 0.2)))
    assert len(last.frames) == 2  # as much as it said can be decoded
    with pytest.raises(BadClip):
        read_request(ReadRequest(str(front_file), 2, (32, 64), 1 / (found.duration + 0.5)))


def test_the_packets_looked_at_are_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.ts", levels(40), fps=8, options={"g": "40"})
    monkeypatch.setattr(probe_module, "FRONT_PACKETS", 10)
    monkeypatch.setattr(probe_module, "MAX_STAMPS", 16)
    found = probed(path)
    assert found.duration == pytest.approx(2.0, abs=0.3) and found.frames is None


def test_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGBA", (30, 20)).save(tmp_path / "a.webp")
    assert probed(tmp_path / "turned.jpg") == Probed("image", 0.0, 1, None, (30, 20))
    assert probed(tmp_path / "a.webp") == Probed("image", 0.0, 1, None, (20, 30))


def test_in_child_processes_beside_decoding(tmp_path: Path) -> None:
    video = write(tmp_path / "a.mp4", levels(16), fps=8)
    (tmp_path / "text.mp4").write_text("no video")
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    names = ["a.mp4", "text.mp4", "a.png", "none.mp4"]
    with ClipReader(1) as reader:
        found = list(reader.read_many([ProbeRequest(str(tmp_path / name)) for name in names]))
        both = list(reader.read_many([ReadRequest(str(video), 5, (32, 64), 8.0), ProbeRequest(str(video))]))
    assert found[0] == both[1] == Probed("video", 2.0, 16, 8.0, (32, 64))
    assert found[2] == Probed("image", 0.0, 1, None, (20, 30))
    assert isinstance(found[1], BadClip) and isinstance(found[3], BadClip) and found[3].reason == "no such file"
    assert isinstance(both[0], Decoded)
