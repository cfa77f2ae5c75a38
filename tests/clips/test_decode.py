"""Decoding: the right frames by time stamp, the right picture, and a reason for every clip that cannot be read."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from videos import levels, numbers, turned, write

from mmdit.clips import decode
from mmdit.clips.decode import BadClip, Decoded, read_clip


def read(path: Path, **changes: Any) -> Decoded:
    return read_clip(path, **({"frames": 5, "size": (32, 64), "fps": 8.0} | changes))


# --- which frames


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize(
    ("rate", "fps", "expected"),
    [
        (24, 8, [0, 3, 6, 9, 12]),
        (24, 6, [0, 4, 8, 12, 16]),
        (30, 8, [0, 3, 7, 11, 15]),
        (8, 8, [0, 1, 2, 3, 4]),
        (8, 24, [0, 0, 0, 1, 1]),
    ],
)
def test_frames_are_those_shown_at_their_times(
    tmp_path: Path, rate: int, fps: int, expected: list[int], reader: decode.ReaderName
) -> None:
    decoded = read(write(tmp_path / "a.mp4", levels(24), fps=rate), fps=fps, reader=reader)
    assert numbers(decoded) == expected
    assert decoded.reader == reader and decoded.source_frames == 24 and decoded.source_fps == rate
    assert (decoded.start, decoded.end) == (0.0, 4 / fps)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "mov"])
@pytest.mark.parametrize("start", [0.0, 0.25, 0.5])
def test_spans_in_any_container(tmp_path: Path, suffix: str, start: float) -> None:
    path = write(tmp_path / f"a.{suffix}", levels(36), options={"g": "8", "bf": "2", "preset": "fast"})
    assert numbers(read(path, start=start)) == [int(start * 24) + 3 * i for i in range(5)]


def test_a_span_deep_in_a_long_video(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", levels(40), fps=2, options={"g": "6"})
    assert numbers(read(path, start=15, fps=2)) == [30, 31, 32, 33, 34]
    assert numbers(read(path, start=15.4, fps=2)) == [30, 31, 32, 33, 34]
    with pytest.raises(BadClip, match=r"too short: 20 s of video, more than 20.5 s needed"):
        read(path, start=18.5, fps=2)


def test_variable_rate_goes_by_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", levels(6), pts=[0, 100, 200, 1000, 1100, 1500])
    assert numbers(read(path, frames=7, fps=4)) == [0, 2, 2, 2, 3, 4, 5]


def test_edit_lists_are_followed(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4", levels(36), options={"g": "36"})
    cut = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None and packet.pts is not None and packet.time_base is not None:
                shift = int(Fraction(1, 2) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                target.mux(packet)
    decoded = read(cut, frames=8)
    assert numbers(decoded) == [12, 15, 18, 21, 24, 27, 30, 33]
    assert read(cut, frames=8, reader="decord").reader == "pyav"
    with pytest.raises(BadClip, match="too short: 1 s"):
        read(cut, frames=10)


def test_lengths(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", levels(12), fps=8)
    assert numbers(read(path, frames=12))[-1] == 11
    with pytest.raises(BadClip, match=r"1\.5 s of video, more than 1\.5 s needed"):
        read(path, frames=13)  # the thirteenth would begin where the video ends
    with pytest.raises(BadClip, match=r"too short: 1.5 s of video, more than 1.62 s needed"):
        read(path, frames=14)
    with pytest.raises(BadClip, match=r"too short: the span has 0.4 s, 0.5 s needed"):
        read(path, end=0.4)
    assert numbers(read(path, end=0.5)) == [0, 1, 2, 3, 4]
    assert numbers(read(path, frames=1, start=1.3)) == [10]


# --- which picture


def quarters(height: int, width: int) -> np.ndarray[Any, Any]:
    """Red, green, blue and white quarters, clockwise from the top left."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2] = 255, 0, 0
    frame[: height // 2, width // 2 :] = 0, 255, 0
    frame[height // 2 :, width // 2 :] = 0, 0, 255
    frame[height // 2 :, : width // 2] = 255, 255, 255
    return np.stack([frame] * 8)


def corners(frame: np.ndarray[Any, Any]) -> list[str]:
    """The colours of the quarters, clockwise from the top left."""
    height, width = frame.shape[:2]
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 1): "white"}
    places = [(0.2, 0.2), (0.2, 0.8), (0.8, 0.8), (0.8, 0.2)]
    spots = [frame[int(y * height), int(x * width)] > 128 for y, x in places]
    return [names.get(tuple(int(v) for v in spot), "?") for spot in spots]


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (48, 48), (96, 160), (33, 17)])
def test_cuts_the_centre_to_the_size(tmp_path: Path, size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mp4", quarters(64, 96))
    frame = read(path, frames=1, size=size).frames[0]
    assert frame.shape == (*size, 3) and corners(frame) == ["red", "green", "blue", "white"]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), ["red", "green", "blue", "white"]),
        ((0, 1, -1, 0), ["white", "red", "green", "blue"]),  # shown a quarter turn clockwise
        ((-1, 0, 0, -1), ["blue", "white", "red", "green"]),
        ((0, -1, 1, 0), ["green", "blue", "white", "red"]),
    ],
)
@pytest.mark.parametrize("reader", ["pyav", "decord"])
def test_rotation_flag(
    tmp_path: Path, matrix: tuple[int, int, int, int], expected: list[str], reader: decode.ReaderName
) -> None:
    path = turned(write(tmp_path / "a.mp4", quarters(64, 96)), matrix)
    size = (64, 96) if matrix[0] else (96, 64)
    assert corners(read(path, frames=1, size=size, reader=reader).frames[0]) == expected


def test_pixel_aspect(tmp_path: Path) -> None:
    """32x32 pixels that are twice as wide as high are a 32x64 picture: at 32x64 nothing is cut."""
    frames = np.zeros((2, 32, 32, 3), np.uint8)
    frames[:, :4] = 255
    frame = read(write(tmp_path / "a.mp4", frames, aspect=Fraction(2, 1)), frames=1).frames[0]
    assert (frame[:3] > 128).all() and (frame[6:] < 128).all()


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [("libx264", "yuv420p10le"), ("libx264", "yuv444p"), ("ffv1", "gray"), ("ffv1", "gray16le"), ("ffv1", "bgra")],
)
def test_pixel_formats(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    decoded = read(write(tmp_path / "a.mkv", levels(16), codec=codec, pix_fmt=pix_fmt))
    assert numbers(decoded) == [0, 3, 6, 9, 12]


def test_a_gif(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gif", levels(12), fps=10, codec="gif", pix_fmt="rgb8")
    assert read(path, fps=10).frames.shape == (5, 32, 64, 3)


def test_odd_shapes(tmp_path: Path) -> None:
    for height, width in ((2, 2), (2, 300), (18, 998), (35, 51)):
        path = write(tmp_path / f"{height}x{width}.mkv", levels(8, height, width), pix_fmt="yuv444p")
        assert numbers(read(path, frames=2)) == [0, 3]
        assert read(path, frames=2, size=(64, 48)).frames.shape == (2, 64, 48, 3)


# --- what cannot be read


def test_reasons(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mp4", levels(24), options={"movflags": "faststart"}).read_bytes()
    noise = np.random.default_rng(0).bytes(20_000)
    sound = io.BytesIO()
    with av.open(sound, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=44100)
        audio = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), format="fltp", layout="mono")
        audio.rate = 44100
        container.mux(stream.encode(audio))
        container.mux(stream.encode(None))
    play_list = f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/whole.mp4\n".encode()
    cases: dict[bytes, str] = {
        b"": "empty file",
        b"this is a text\n": "not a video",
        noise: "not a video",
        whole[:40]: "not a video",
        sound.getvalue(): "no video stream",
        play_list: "not a video",
        f"ffconcat version 1.0\nfile {tmp_path}/whole.mp4\n".encode(): "not a video",
    }
    for number, (data, reason) in enumerate(cases.items()):
        path = tmp_path / f"{number}.mp4"
        path.write_bytes(data)
        for reader in ("pyav", "decord"):
            with pytest.raises(BadClip) as error:
                read(path, reader=reader)
            assert error.value.reason.startswith(reason), (number, reader, error.value.reason)
            assert "\n" not in error.value.reason and str(tmp_path) not in error.value.reason
    with pytest.raises(BadClip, match="no such file"):
        read(tmp_path / "none.mp4")


def moving(count: int = 24) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    base = rng.integers(0, 255, (64, 96, 3), np.uint8)
    return np.stack([np.roll(base, 3 * i, axis=1) for i in range(count)])


def test_damage_is_found_and_not_patched(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", moving(), options={"movflags": "faststart", "g": "24", "crf": "25"})
    whole = path.read_bytes()
    begin = whole.index(b"mdat")
    found, unseen, rng = 0, 0, np.random.default_rng(1)
    clean = read(path, size=(64, 96)).frames
    for _ in range(40):
        data = bytearray(whole)
        for place in rng.integers(begin + 700, begin + (len(whole) - begin) // 2, 3):
            data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            unseen += not np.array_equal(read(path, size=(64, 96)).frames, clean)
        except BadClip as error:
            assert error.reason.startswith("damaged"), error.reason
            found += 1
    assert found >= 20, (found, unseen)


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_file_cut_short(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.{suffix}", moving(), options={"g": "24"})
    with (
        av.open(str(path)) as source,
        av.open(str(tmp_path / f"front.{suffix}"), "w", options={"movflags": "faststart"}) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    whole = (tmp_path / f"front.{suffix}").read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 5])
    with pytest.raises(BadClip, match=r"damaged|too short"):
        read(path)
    assert len(read(path, frames=2).frames) == 2  # what comes before the cut is whole


def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", levels(8))
    monkeypatch.setattr("mmdit.clips.container.MAX_PIXELS", 1000)
    with pytest.raises(BadClip, match="too large: 32x64"):
        read(path)
