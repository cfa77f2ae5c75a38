"""Kinds of video, each compared with what FFmpeg's own filters make of its frames."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from videos import turned, write

from mmdit.clips.decode import BadClip, Decoded, ReadRequest, read_request

FLAGS = "bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp"
TURNS = {
    "": (1, 0, 0, 1),
    "transpose=clock": (0, 1, -1, 0),
    "hflip,vflip": (-1, 0, 0, -1),
    "transpose=cclock": (0, -1, 1, 0),
}


def picture(height: int, width: int, count: int = 2, seed: int = 0) -> np.ndarray[Any, Any]:
    """Smooth colours, different in every corner and in every frame."""
    y, x = np.mgrid[0 : max(height, 2), 0 : max(width, 2)]
    y, x = y / y.max(), x / x.max()
    frames = [
        np.stack([np.sin(3 * x + c + t) * np.cos(2 * y - c + seed) * 120 + 128 for c in range(3)], -1)
        for t in range(count)
    ]
    return np.stack(frames).astype(np.uint8)[:, :height, :width]


def read(path: Path, size: tuple[int, int], frames: int = 1, **changes: Any) -> Decoded:
    return read_request(ReadRequest(str(path), frames, size, 24.0, **changes))


def filtered(path: Path, filters: str) -> np.ndarray[Any, Any]:
    """The first frame, RGB, through a chain of FFmpeg's filters."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        last: Any = graph.add_buffer(template=stream)
        for part in [*filters.split(","), "format=rgb24"]:
            name, _, arguments = part.partition("=")
            following = graph.add(name, arguments) if arguments else graph.add(name)
            last.link_to(following)
            last = following
        sink = graph.add("buffersink")
        last.link_to(sink)
        graph.configure()
        graph.push(next(container.decode(stream)))
        return np.asarray(graph.pull().to_ndarray())


def scaled_and_cut(stored: tuple[int, int], size: tuple[int, int], aspect: float = 1.0) -> str:
    """The filters that cover `size` and cut its centre out."""
    scale = max(size[0] / stored[0], size[1] / (stored[1] * aspect))
    cover = max(size[0], round(stored[0] * scale)), max(size[1], round(stored[1] * aspect * scale))
    cut = f"crop={size[1]}:{size[0]}:{(cover[1] - size[1]) // 2}:{(cover[0] - size[0]) // 2}:exact=1"
    return f"scale={cover[1]}:{cover[0]}:flags={FLAGS},format=rgb24,{cut}"


@pytest.mark.parametrize("size", [(48, 64), (40, 40), (96, 50)])
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv420p", "mp4"), ("libx264", "yuv420p10le", "mp4"), ("libx264", "yuv422p", "mkv"),
        ("libx264", "yuv444p", "mp4"), ("ffv1", "gray", "mkv"), ("ffv1", "gray16le", "mkv"),
        ("ffv1", "yuv422p10le", "mkv"), ("ffv1", "gbrp12le", "mkv"), ("mjpeg", "yuvj420p", "avi"),
        ("libvpx-vp9", "yuv420p", "webm"), ("mpeg4", "yuv420p", "avi"),
    ],
)  # fmt: skip
def test_pixel_formats(tmp_path: Path, codec: str, pix_fmt: str, suffix: str, size: tuple[int, int]) -> None:
    path = write(tmp_path / f"a.{suffix}", picture(72, 96), codec=codec, pix_fmt=pix_fmt)
    with av.open(str(path)) as container:
        assert container.streams.video[0].format.name == pix_fmt
    decoded = read(path, size)
    assert np.array_equal(decoded.frames[0], filtered(path, scaled_and_cut((72, 96), size)))
    if pix_fmt.startswith("gray"):
        assert (decoded.frames[..., 0] == decoded.frames[..., 2]).all()


@pytest.mark.parametrize("turning", TURNS)
def test_rotation_flags(tmp_path: Path, turning: str) -> None:
    path = turned(write(tmp_path / "a.mp4", picture(72, 96), options={"crf": "1"}), TURNS[turning])
    size = (60, 40)
    before = size[::-1] if "transpose" in turning else size
    expected = filtered(path, ",".join(filter(None, [scaled_and_cut((72, 96), before), turning])))
    assert np.array_equal(read(path, size).frames[0], expected)


@pytest.mark.parametrize("matrix", [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0)])
def test_mirrored_by_the_header(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    path = turned(write(tmp_path / "a.mp4", picture(72, 96)), matrix)
    with pytest.raises(BadClip, match="mirrored by its header"):
        read(path, (48, 64))


@pytest.mark.parametrize("aspect", [Fraction(2, 1), Fraction(3, 4), Fraction(64, 45)])
@pytest.mark.parametrize("size", [(48, 96), (64, 48)])
def test_pixel_aspect(tmp_path: Path, aspect: Fraction, size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mp4", picture(72, 96), aspect=aspect)
    expected = filtered(path, scaled_and_cut((72, 96), size, float(aspect)))
    assert np.array_equal(read(path, size).frames[0], expected)


@pytest.mark.parametrize("stored", [(1, 1), (1, 64), (35, 51), (17, 999), (999, 17)])
@pytest.mark.parametrize("size", [(32, 48), (33, 17)])
def test_odd_sizes(tmp_path: Path, stored: tuple[int, int], size: tuple[int, int]) -> None:
    path = write(tmp_path / "a.mkv", picture(*stored), codec="ffv1", pix_fmt="yuv444p")
    decoded = read(path, size)
    assert decoded.frames.shape == (1, *size, 3) and decoded.source_size == stored
    assert np.array_equal(decoded.frames[0], filtered(path, scaled_and_cut(stored, size)))


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"), [("qtrle", "argb", "mov"), ("png", "rgba", "mov"), ("ffv1", "bgra", "mkv")]
)
def test_alpha_goes_on_white(tmp_path: Path, codec: str, pix_fmt: str, suffix: str) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (48, 64, 4), np.uint8)
    rgba[:9, ..., 3], rgba[9:20, ..., 3] = 0, 255
    path = tmp_path / f"a.{suffix}"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, pix_fmt
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgba, format="rgba")))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="rgba")
    assert np.array_equal(plain, rgba)
    expected = rgba[..., :3] * (rgba[..., 3:] / 255) + 255 * (1 - rgba[..., 3:] / 255)
    for reader in ("pyav", "decord"):
        decoded = read(path, (48, 64), reader=reader)
        assert decoded.reader == "pyav" and np.abs(decoded.frames[0] - expected).max() <= 0.5


def test_alpha_that_its_decoder_drops_is_skipped_by_name(tmp_path: Path) -> None:
    for pix_fmt in ("yuv420p", "yuva420p"):
        write(tmp_path / f"{pix_fmt}.webm", picture(48, 64), codec="libvpx-vp9", pix_fmt=pix_fmt)
        with av.open(str(tmp_path / f"{pix_fmt}.webm")) as container:
            assert next(container.decode(video=0)).format.name == "yuv420p"
    with pytest.raises(BadClip, match="an alpha layer of its own"):
        read(tmp_path / "yuva420p.webm", (48, 64))
    assert len(read(tmp_path / "yuv420p.webm", (48, 64)).frames) == 1


@pytest.mark.parametrize(("space", "primary"), [(1, "bt709"), (5, "bt601")])
@pytest.mark.parametrize("full_range", [False, True])
def test_colour_tags_are_followed(tmp_path: Path, space: int, primary: str, full_range: bool) -> None:
    from av.video.reformatter import ColorRange, Colorspace

    kind = {1: Colorspace.ITU709, 5: Colorspace.ITU601}[space]
    span = ColorRange.JPEG if full_range else ColorRange.MPEG
    path, frames = tmp_path / "a.mkv", picture(48, 64)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=24, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv444p"
        stream.codec_context.colorspace, stream.codec_context.color_range = space, int(span)
        for values in frames:
            frame = av.VideoFrame.from_ndarray(values, format="rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv444p", dst_colorspace=kind, dst_color_range=span)))
        container.mux(stream.encode(None))
    frame = read(path, (48, 64)).frames[0].astype(int)
    assert np.array_equal(frame, filtered(path, scaled_and_cut((48, 64), (48, 64)))), primary
    assert np.abs(frame - frames[0]).mean() < 1.5
