"""Files that people open: the frames come back, and the note of how they were made."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdit.clips.video import read_metadata
from mmdit.errors import Refused
from mmdit.pipelines.output import FORMATS, check_writable, output_format, read_frames, read_note, write_output

NOTE = {"prompt": "a red coat, 50 \N{EURO SIGN}", "seed": 3, "label": None, "guidance": 2.0}
FRAMES = np.stack([np.full((16, 32, 3), level, np.uint8) for level in (20, 120, 230)])


def test_mp4(tmp_path: Path) -> None:
    import av

    write_output(tmp_path / "clip.mp4", FRAMES, 8, NOTE)
    assert read_metadata(tmp_path / "clip.mp4") == NOTE
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == 8
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    assert np.abs(np.stack(frames).astype(int) - FRAMES).max() <= 4


def test_gif(tmp_path: Path) -> None:
    write_output(tmp_path / "clip.gif", FRAMES, 8, NOTE)
    with Image.open(tmp_path / "clip.gif") as picture:
        assert picture.n_frames == 3  # type: ignore[attr-defined]
        assert picture.info["loop"] == 0
        assert picture.info["duration"] == 120
        assert json.loads(picture.info["comment"]) == NOTE
        picture.seek(2)
        assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - FRAMES[2]).max() <= 2


def test_webp(tmp_path: Path) -> None:
    write_output(tmp_path / "clip.webp", FRAMES, 8, NOTE)
    assert np.abs(read_frames(tmp_path / "clip.webp").astype(int) - FRAMES).max() <= 4
    with Image.open(tmp_path / "clip.webp") as picture:
        assert picture.n_frames == 3  # type: ignore[attr-defined]
        assert picture.info["loop"] == 0


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_note_and_the_frames_come_back(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip.{suffix}"
    write_output(path, FRAMES, 8, NOTE)
    assert read_note(path) == NOTE
    assert len(read_frames(path)) == (1 if suffix == "png" else 3)
    path.write_bytes(path.read_bytes()[:40])
    assert read_note(path) == {}


def test_an_mp4_plays_in_browsers_and_on_phones(tmp_path: Path) -> None:
    import av

    path = tmp_path / "clip.mp4"
    write_output(path, FRAMES, 8, NOTE)
    with av.open(str(path)) as container:
        (stream,) = container.streams
        assert stream.codec_context.name == "h264"
        assert next(container.decode(video=0)).format.name == "yuv420p"
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")  # the index first: it plays before all of it is there


def test_png_of_one_frame_and_of_several(tmp_path: Path) -> None:
    write_output(tmp_path / "one.png", FRAMES[:1], 8, NOTE)
    write_output(tmp_path / "strip.PNG", FRAMES, 8, NOTE)
    with Image.open(tmp_path / "one.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), FRAMES[0])
        assert json.loads(picture.info["comment"]) == NOTE
    with Image.open(tmp_path / "strip.PNG") as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.concatenate(list(FRAMES), axis=1))


def test_the_suffix_says_the_format(tmp_path: Path) -> None:
    names = {"a.mp4": "mp4", "a.GIF": "gif", "a.png": "png", "a": None, "a.v2": None}
    assert {name: output_format(tmp_path / name) for name in names} == names
    for name in ("a.avi", "a.JPG", "a.webm"):
        with pytest.raises(Refused, match="mp4, gif, webp or png"):
            output_format(tmp_path / name)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("x")
    (tmp_path / "dir.mp4").mkdir()
    long = "n" * 260
    names = ["file/a.mp4", f"{long}.mp4", f"{long}/a.mp4", "full", "a\0.mp4", "file/a/b", "dir.mp4"]
    for bad in (Path("/proc/a.mp4"), *(tmp_path / name for name in names)):
        with pytest.raises(Refused):
            check_writable(bad)
    assert sorted(os.listdir(tmp_path)) == ["dir.mp4", "file", "full"]


def test_places_that_can_be_written_are_left_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "old.mp4").write_text("old")
    (tmp_path / "empty").mkdir()
    for good in (tmp_path / "old.mp4", tmp_path / "new" / "deep er" / "a.mp4", tmp_path / "empty", tmp_path / "n"):
        check_writable(good)
    assert sorted(os.listdir(tmp_path)) == ["empty", "old.mp4"]
    assert (tmp_path / "old.mp4").read_text() == "old"
