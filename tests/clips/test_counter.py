"""The frames that are chosen, read off a counter drawn into them, against those that the time stamps ask for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from videos import counted, counters, edited, tarred, write

from mmdit.clips.decode import BadClip, Decoded, ReadRequest, read_request

SIZE = (32, 48)  # of 64x120: half as large, 6 columns cut on both sides


def read(path: Path, frames: int = 6, fps: float = 8.0, **changes: Any) -> Decoded:
    return read_request(ReadRequest(str(path), frames, SIZE, fps, **changes))


def numbers(decoded: Decoded) -> list[int]:
    return counted(decoded.frames, 0.5)


def expected(times: Sequence[float], start: float, frames: int, fps: float) -> list[int]:
    """The number of the frame that a viewer sees at each time; `times` are when the frames come, up to
    a millisecond late, by which containers round."""
    return [max(n for n, time in enumerate(times) if time <= start + i / fps + 1e-3) for i in range(frames)]


def even(count: int, rate: float) -> list[float]:
    return [n / rate for n in range(count)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("rate", "fps", "start"), [(24, 24, 0), (24, 6, 0), (24, 6, 1.25), (25, 8, 0.3), (12, 30, 0.5)]
)
def test_constant_rate(tmp_path: Path, suffix: str, rate: int, fps: int, start: float) -> None:
    path = write(tmp_path / f"a.{suffix}", counters(60), fps=rate, options={"g": "12", "bf": "2"})
    decoded = read(path, fps=fps, start=start)
    assert numbers(decoded) == expected(even(60, rate), start, 6, fps)
    assert decoded.speed == 1.0


@pytest.mark.parametrize("seed", range(4))
def test_variable_rate(tmp_path: Path, seed: int) -> None:
    steps = np.random.default_rng(seed).integers(5, 260, 40)
    stamps = [0, *np.cumsum(steps).tolist()]
    path = write(tmp_path / "a.mkv", counters(41), pts=stamps, options={"g": "9"})
    times = [stamp / 1000 for stamp in stamps]
    for start in (0.0, 0.333, 1.5):
        assert numbers(read(path, frames=12, fps=7, start=start)) == expected(times, start, 12, 7)


@pytest.mark.parametrize("bframes", ["0", "2"])
def test_edit_lists(tmp_path: Path, bframes: str) -> None:
    """What is shown begins in the middle of a group of pictures and ends before the media do."""
    path = write(tmp_path / "a.mp4", counters(60), options={"g": "30", "bf": bframes, "preset": "fast"})
    edited(path, [(1.0, 17 / 24)])
    with av.open(str(path)) as container:  # what FFmpeg shows
        plain = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert counted(np.stack(plain), 1.0) == list(range(17, 41))
    assert numbers(read(path, frames=8)) == [17 + n for n in expected(even(24, 24), 0, 8, 8)]
    assert numbers(read(path, frames=3, start=0.5)) == [29, 32, 35]
    assert numbers(read(path, frames=4, start=0.25, stride=2)) == [23, 25, 27, 29]
    with pytest.raises(BadClip, match="too short: 1 s of video"):
        read(path, frames=10)


def test_an_edit_list_that_begins_late(tmp_path: Path) -> None:
    """Half a second of nothing comes first: seconds count from the first frame that there is."""
    path = edited(write(tmp_path / "a.mp4", counters(40)), [(0.5, None), (1.5, 0.25)])
    assert numbers(read(path)) == [6 + n for n in expected(even(36, 24), 0, 6, 8)]


def test_mirrored(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", counters(60))
    plain, flipped = read(path, start=1.0), read(path, start=1.0, flip=True)
    assert np.array_equal(flipped.frames, plain.frames[:, :, ::-1]) and flipped.frames.flags.c_contiguous
    assert numbers(flipped) == [int(f"{n:08b}"[::-1], 2) for n in numbers(plain)]
    assert numbers(plain) == [24, 27, 30, 33, 36, 39]


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
@pytest.mark.parametrize(("stride", "start"), [(1, 0.0), (2, 0.5), (5, 0.26), (11, 0.0)])
def test_every_so_many_frames(tmp_path: Path, suffix: str, stride: int, start: float) -> None:
    path = write(tmp_path / f"a.{suffix}", counters(60), options={"g": "12", "bf": "2", "preset": "fast"})
    decoded = read(path, stride=stride, start=start)
    first = int(start * 24 + 0.05)
    assert numbers(decoded) == list(range(first, first + 6 * stride, stride))
    assert decoded.fps == 8 and decoded.speed == pytest.approx(stride * 8 / 24, rel=0.02)
    assert decoded.end == pytest.approx((first + 5 * stride) / 24, abs=2e-3)


def test_frames_that_come_out_of_order(tmp_path: Path) -> None:
    """B-frames follow those that are shown after them: no frame may be missed at the last one's side."""
    options = {"bf": "3", "b_strategy": "0", "preset": "fast", "g": "24"}
    path = write(tmp_path / "a.mp4", counters(40), options=options)
    for frames in range(1, 12):
        assert numbers(read(path, frames=frames, stride=1, start=0.25)) == list(range(6, 6 + frames))
        assert numbers(read(path, frames=frames, fps=24, start=0.25)) == list(range(6, 6 + frames))


def test_frames_are_counted_where_the_rate_varies(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", counters(12), pts=[0, 10, 20, 500, 510, 900, 910, 1200, 1300, 1310, 1900, 2000])
    decoded = read(path, frames=4, stride=3)
    assert numbers(decoded) == [0, 3, 6, 9]
    assert decoded.end == pytest.approx(1.31) and decoded.speed == pytest.approx(1.31 / (3 / 8))


def test_too_few_frames_for_the_stride(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", counters(24))
    assert numbers(read(path, frames=4, stride=7, start=2 / 24)) == [2, 9, 16, 23]
    with pytest.raises(BadClip, match="too short: 21 frames from its start on, 22 needed"):
        read(path, frames=4, stride=7, start=3 / 24)
    with pytest.raises(BadClip, match=r"too short: the span has 0.5 s, 0.583 s needed"):
        read(path, frames=3, stride=7, end=0.5)
    with pytest.raises(BadClip, match="too short: 1 s of video, more than 5 s needed"):
        read(path, frames=1, stride=7, start=5.0)


def test_deep_in_a_long_video(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", counters(240), fps=12, options={"g": "30"})
    assert numbers(read(path, start=15.0, fps=6)) == [180, 182, 184, 186, 188, 190]
    assert numbers(read(path, start=15.0, stride=4)) == [180, 184, 188, 192, 196, 200]


@pytest.mark.parametrize("reader", ["pyav", "decord"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_inside_a_tar_file(tmp_path: Path, suffix: str, reader: str) -> None:
    one = write(tmp_path / f"1.{suffix}", counters(24))
    two = write(tmp_path / f"2.{suffix}", counters(60), options={"g": "12"})
    members = tarred(tmp_path / "all.tar", one, two, one)
    offset, length = members[two.name]
    changes = {"offset": offset, "length": length, "reader": reader}
    inside = read(tmp_path / "all.tar", start=1.0, **changes)
    assert numbers(inside) == [24, 27, 30, 33, 36, 39] and inside.reader == reader
    assert np.array_equal(inside.frames, read(two, start=1.0, reader=reader).frames)
    assert numbers(read(tmp_path / "all.tar", stride=9, flip=True, **changes)) == [
        int(f"{n:08b}"[::-1], 2) for n in range(0, 54, 9)
    ]
