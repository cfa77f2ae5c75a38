"""Clips come back from their files as they were written, and the same frames are the same bytes."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from mmdit.clips.video import clip_to_frames, frames_to_clip, read_metadata, write_clip, write_image
from mmdit.errors import Refused


def moving(frames: int = 9, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    t, y, x = np.meshgrid(np.arange(frames), np.arange(height), np.arange(width), indexing="ij")
    waves = [128 + 90 * np.sin((x + 2 * t) / 9), 128 + 90 * np.cos((y - t) / 7), 128 + 60 * np.sin((x + y) / 11)]
    return np.stack(waves, -1).astype(np.uint8)


def read(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize("shape", [(9, 48, 64), (1, 32, 32), (17, 64, 48), (3, 2, 2), (5, 34, 70)])
def test_frames_come_back(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    frames = moving(*shape)
    write_clip(tmp_path / "a b.mp4", frames, 8)
    back = read(tmp_path / "a b.mp4")
    assert back.shape == frames.shape
    assert np.abs(back.astype(int) - frames).mean() < 4


@pytest.mark.parametrize("fps", [8, 12.5, 24000 / 1001])
def test_rate_and_format(tmp_path: Path, fps: float) -> None:
    write_clip(tmp_path / "a.mp4", moving(), fps)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate or 0) == pytest.approx(fps, rel=1e-3)
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.find(b"moov") < data.find(b"mdat")  # a player may begin before it has the whole file


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    frames = moving(17, 64, 48)
    for name in "abcdef":
        write_clip(tmp_path / f"{name}.mp4", frames, 8, metadata={"caption": "a coat"})
    assert len({(tmp_path / f"{name}.mp4").read_bytes() for name in "abcdef"}) == 1


def test_metadata(tmp_path: Path) -> None:
    facts = {"caption": 'a "striped" coat; größer', "seed": "3", "empty": ""}
    write_clip(tmp_path / "a.mp4", moving(), 8, metadata=facts)
    assert read_metadata(tmp_path / "a.mp4") == facts
    write_clip(tmp_path / "b.mp4", moving(), 8)
    assert read_metadata(tmp_path / "b.mp4") == {}


def test_an_unfinished_file_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDIT_FAULT", "full@a.mp4:written")
    with pytest.raises(OSError, match="space"):
        write_clip(tmp_path / "a.mp4", moving(), 8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "frames",
    [
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((2, 8, 8, 4), np.uint8),
        np.zeros((2, 8, 8, 3), np.float32),
        np.zeros((0, 8, 8, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(tmp_path: Path, frames: NDArray[np.uint8]) -> None:
    with pytest.raises(Refused, match="uint8 of shape"):
        write_clip(tmp_path / "a.mp4", frames, 8)
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_and_rates_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="47x64; use 46x64"):
        write_clip(tmp_path / "a.mp4", moving(2, 47, 64), 8)
    for fps in (0, -1, float("nan")):
        with pytest.raises(Refused, match="frame rate"):
            write_clip(tmp_path / "a.mp4", moving(2), fps)
    assert list(tmp_path.iterdir()) == []


def test_clip_and_frames_are_inverse() -> None:
    frames = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    clip = frames_to_clip(frames)
    assert clip.shape == (3, 1, 16, 16)
    assert clip.dtype == torch.float32
    assert (clip.min().item(), clip.max().item()) == (-1.0, 1.0)
    assert np.array_equal(clip_to_frames(clip), frames)
    assert clip_to_frames(torch.full((3, 2, 4, 4), 7.0)).max() == 255
    assert clip_to_frames(torch.full((3, 2, 4, 4), -7.0)).min() == 0


def test_image(tmp_path: Path) -> None:
    frame = moving()[0]
    write_image(tmp_path / "a.png", frame)
    with av.open(str(tmp_path / "a.png")) as container:
        back = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(back, frame)


def test_foreign_comments_are_no_metadata(tmp_path: Path) -> None:
    for at, text in enumerate(("made by hand", json.dumps([1, 2]))):
        path = tmp_path / f"{at}.mp4"
        with av.open(str(path), "w") as container:
            container.metadata["comment"] = text
            stream = container.add_stream("libx264", 8)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moving()[0], format="rgb24")))
            container.mux(stream.encode(None))
        assert read_metadata(path) == {}
