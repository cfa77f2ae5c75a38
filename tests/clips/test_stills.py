"""Stills: any kind of pixels, as shown, from files and from parts of files; what is no picture is named."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from videos import tarred

from mmdit.clips.decode import BadClip, Decoded, ReadRequest, read_request

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (40, 40, 230), "gold": (220, 190, 40)}


def read(path: Path, frames: int = 1, size: tuple[int, int] = (40, 64), **changes: Any) -> Decoded:
    return read_request(ReadRequest(str(path), frames, size, 8.0, **changes))


def quarters(height: int = 80, width: int = 128) -> np.ndarray[Any, Any]:
    """Red, green, blue and gold quarters, clockwise from the top left."""
    frame = np.zeros((height, width, 3), np.uint8)
    frame[: height // 2, : width // 2], frame[: height // 2, width // 2 :] = COLOURS["red"], COLOURS["green"]
    frame[height // 2 :, width // 2 :], frame[height // 2 :, : width // 2] = COLOURS["blue"], COLOURS["gold"]
    return frame


def corners(frame: np.ndarray[Any, Any]) -> list[str]:
    """The nearest colours of the quarters, clockwise from the top left."""
    height, width = frame.shape[:2]
    spots = [frame[int(y * height), int(x * width)] for y, x in [(0.2, 0.2), (0.2, 0.8), (0.8, 0.8), (0.8, 0.2)]]
    return [min(COLOURS, key=lambda name: float(np.abs(np.subtract(COLOURS[name], spot)).sum())) for spot in spots]


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "bmp", "tif"])
def test_every_kind_is_a_clip_of_one_frame(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    Image.fromarray(quarters()).save(path)
    decoded = read(path)
    assert decoded.frames.shape == (1, 40, 64, 3) and corners(decoded.frames[0]) == list(COLOURS)
    assert (decoded.start, decoded.end, decoded.speed, decoded.source_frames) == (0.0, 0.0, 1.0, 1)
    assert (decoded.source_size, decoded.source_fps, decoded.reader) == ((80, 128), None, "pillow")
    flipped = read(path, flip=True).frames
    assert np.array_equal(flipped, decoded.frames[:, :, ::-1]) and flipped.flags.c_contiguous
    members = tarred(tmp_path / "all.tar", path, path)
    offset, length = members[path.name]
    inside = read(tmp_path / "all.tar", offset=offset, length=length)
    assert np.array_equal(inside.frames, decoded.frames)
    for changes in ({"frames": 2}, {"start": 0.5}):
        with pytest.raises(BadClip, match="too short: a still has one frame"):
            read(path, **changes)


def test_the_name_does_not_matter(tmp_path: Path) -> None:
    Image.fromarray(quarters()).save(tmp_path / "a.mp4", format="JPEG")
    assert corners(read(tmp_path / "a.mp4").frames[0]) == list(COLOURS)


def test_cut_and_scaled_as_a_video_frame_is(tmp_path: Path) -> None:
    import av

    frame = np.random.default_rng(0).integers(0, 255, (90, 120, 3), np.uint8)
    Image.fromarray(frame).save(tmp_path / "a.png")
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = 90, 120, "bgr0"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    for size in ((90, 120), (30, 64), (64, 32), (100, 200)):
        still, video = (read(tmp_path / name, size=size).frames.astype(int) for name in ("a.png", "a.mkv"))
        assert np.abs(still - video).max() <= 1, size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    shown = quarters()
    # How each orientation is stored, so that it is shown as `shown`: EXIF 2.3, table of the tag.
    stored = {
        1: shown, 2: shown[:, ::-1], 3: shown[::-1, ::-1], 4: shown[::-1], 5: shown.transpose(1, 0, 2),
        6: np.rot90(shown), 7: shown[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(shown, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "a.png", exif=exif)
    decoded = read(tmp_path / "a.png", size=(80, 128))
    assert np.array_equal(decoded.frames[0], shown) and decoded.source_size == stored.shape[:2]


def test_alpha_goes_on_white(tmp_path: Path) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (40, 64, 4), np.uint8)
    rgba[:5, ..., 3], rgba[5:10, ..., 3] = 0, 255
    expected = rgba[..., :3] * (rgba[..., 3:] / 255) + 255 * (1 - rgba[..., 3:] / 255)
    for kind in ("png", "tif"):
        Image.fromarray(rgba).save(tmp_path / f"a.{kind}")
        assert np.abs(read(tmp_path / f"a.{kind}").frames[0] - expected).max() <= 0.5
    gray_alpha = Image.fromarray(rgba).convert("LA")
    gray_alpha.save(tmp_path / "la.png")
    assert (read(tmp_path / "la.png").frames[0][:5] == 255).all()
    palette = Image.fromarray(quarters(40, 64)).quantize(4)
    spot = palette.getpixel((3, 3))
    palette.save(tmp_path / "p.png", transparency=spot)
    frame = read(tmp_path / "p.png").frames[0]
    assert (frame[3, 3] == 255).all() and corners(frame)[1:] == list(COLOURS)[1:]


def test_gray_16_bits_and_one_bit(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 40 * 64).reshape(40, 64)
    wide = np.round(ramp).astype(np.uint16)
    for kind in ("png", "tif"):
        Image.fromarray(wide).save(tmp_path / f"wide.{kind}")
        frame = read(tmp_path / f"wide.{kind}").frames[0]
        assert np.abs(frame[..., 0] - ramp / 257).max() <= 0.51 and (frame[..., 0] == frame[..., 2]).all()
    big = struct.pack(">2sHL", b"MM", 42, 8) + struct.pack(">H", 8)
    tags = [(256, 64), (257, 40), (258, 16), (259, 1), (262, 1), (273, 200), (278, 40), (279, 5120)]
    big += b"".join(struct.pack(">HHLL", tag, 4, 1, value) for tag, value in tags) + bytes(4)
    (tmp_path / "big.tif").write_bytes(big.ljust(200, b"\0") + wide.astype(">u2").tobytes())
    assert np.abs(read(tmp_path / "big.tif").frames[0][..., 0] - ramp / 257).max() <= 0.51
    Image.fromarray(wide.astype(np.uint8)).save(tmp_path / "gray.jpg", quality=95)
    assert read(tmp_path / "gray.jpg").frames.shape == (1, 40, 64, 3)
    Image.fromarray(wide > 30000).save(tmp_path / "bit.png")
    assert set(read(tmp_path / "bit.png").frames.ravel()) == {0, 255}
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(BadClip, match="pixels of kind F"):
        read(tmp_path / "float.tif")


def test_cmyk(tmp_path: Path) -> None:
    for kind in ("jpg", "tif"):
        Image.fromarray(quarters()).convert("CMYK").save(tmp_path / f"a.{kind}")
        assert np.abs(read(tmp_path / f"a.{kind}", size=(80, 128)).frames[0].astype(int) - quarters()).mean() < 4


def test_odd_sizes(tmp_path: Path) -> None:
    for height, width in ((1, 1), (1, 7), (17, 999), (999, 17)):
        Image.new("RGB", (width, height), (10, 200, 90)).save(tmp_path / "a.png")
        frame = read(tmp_path / "a.png").frames[0].astype(int)
        assert frame.shape == (40, 64, 3) and np.abs(frame - (10, 200, 90)).max() <= 1


def huge_png(side: int) -> bytes:
    """A png file of side x side pixels in one bit each: small, until it is decoded."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes(min(side, 10_000) * (side // 8 + 1)), 1)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [6_000, 10_000, 60_000])  # below Pillow's warning, above it, above its error
def test_huge_pictures_are_refused_by_their_header(tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any) -> None:
        raise AssertionError("it was decoded")

    path = tmp_path / "a.png"
    path.write_bytes(huge_png(side))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    with pytest.raises(BadClip, match="^too large"):
        read(path)


def test_what_is_no_single_whole_picture(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(whole, "PNG")
    data = whole.getvalue()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    two = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("png", "webp", "tif"):
        two[0].save(tmp_path / f"two.{kind}", save_all=True, append_images=two[1:])
    cases = {
        data[: len(data) // 2]: "damaged: ",
        data[:9]: "damaged: ",
        bytes(flipped): "damaged: ",
        b"BM no": "damaged: ",
    }
    for content, reason in cases.items():
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(BadClip) as error:
            read(tmp_path / "bad.png")
        assert error.value.reason.startswith(reason) and str(tmp_path) not in error.value.reason, error.value.reason
        assert "\n" not in error.value.reason
    for kind in ("png", "webp"):
        with pytest.raises(BadClip, match=f"an animated {kind}"):
            read(tmp_path / f"two.{kind}")
    assert (read(tmp_path / "two.tif").frames[0, 0, 0] == (255, 0, 0)).all()  # the first page


def test_pillow_is_loaded_with_the_first_still_only(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    code = """
import sys, mmdit.clips.child
from mmdit.clips.decode import ReadRequest, read_request
print([name in sys.modules for name in ("torch", "PIL", "decord")])
read_request(ReadRequest(sys.argv[1], 1, (8, 8), 8.0))
print("PIL" in sys.modules, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True)
    assert done.stdout.split("\n")[:2] == ["[False, False, False]", "True False"], done.stderr
