"""Video files whose frames tell their number."""

import struct
import tarfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from mmdit.clips.decode import Decoded
from mmdit.clips.video import write_clip

STEP = 6


def levels(count: int, height: int = 32, width: int = 64) -> np.ndarray[Any, Any]:
    """Frames that are one grey each, which tells their number."""
    numbers = np.arange(count, dtype=np.uint8) * STEP + 10
    return np.broadcast_to(numbers[:, None, None, None], (count, height, width, 3))


def numbers(decoded: Decoded) -> list[int]:
    return [round((float(frame.mean()) - 10) / STEP) for frame in decoded.frames]


def write(
    path: Path,
    frames: np.ndarray[Any, Any],
    *,
    fps: float = 24,
    pts: Sequence[int] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    aspect: Fraction | None = None,
) -> Path:
    """`pts` are in thousandths of a second."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.codec_context.thread_count = pix_fmt, 1
        stream.options = ({"crf": "10", "preset": "ultrafast"} if codec == "libx264" else {}) | (options or {})
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, values in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(values), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[number], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


BITS = 8
BLOCK = 10  # pixels, wide enough to survive 4:2:0 and being scaled to half the size


def counters(count: int, height: int = 64, width: int = 120) -> np.ndarray[Any, Any]:
    """Frames with their number in binary: white and black blocks in the middle, the highest bit on the left."""
    frames = np.full((count, height, width, 3), 90, np.uint8)
    left, top = (width - BITS * BLOCK) // 2, height // 4
    for number in range(count):
        for bit in range(BITS):
            column = left + bit * BLOCK
            frames[number, top:-top, column : column + BLOCK] = 255 * (number >> (BITS - 1 - bit) & 1)
    return frames


def counted(frames: np.ndarray[Any, Any], scale: float) -> list[int]:
    """The numbers read from frames of `counters` that were scaled by `scale` and cut at the centre."""
    columns = [round(frames.shape[2] / 2 + (bit + 0.5 - BITS / 2) * BLOCK * scale) for bit in range(BITS)]
    row = frames[:, frames.shape[1] // 2].mean(-1)
    return [int("".join(str(int(values[column] > 128)) for column in columns), 2) for values in row]


def edited(path: Path, entries: Sequence[tuple[float, float | None]]) -> Path:
    """Gives an mp4 file that ends with its moov atom another edit list: seconds shown, and from which second of the
    media on; None is an empty edit, in which nothing is shown."""
    data = bytearray(path.read_bytes())

    def ticks(atom: bytes) -> int:  # a second of mvhd and mdhd, version 0
        return int.from_bytes(data[(at := data.index(atom) + 16) : at + 4], "big")

    movie, media = ticks(b"mvhd"), ticks(b"mdhd")
    old = data.index(b"elst")
    shift = int.from_bytes(data[old + 16 : old + 20], "big")  # how late B-frames make the first one
    body = b"".join(
        struct.pack(">IiI", round(seconds * movie), -1 if start is None else round(start * media) + shift, 1 << 16)
        for seconds, start in entries
    )
    atom = b"elst" + bytes(4) + struct.pack(">I", len(entries)) + body
    size = int.from_bytes(data[old - 4 : old], "big")
    data[old - 4 : old - 4 + size] = struct.pack(">I", len(atom) + 4) + atom
    for parent in (b"edts", b"trak", b"moov"):
        at = data.index(parent) - 4
        data[at : at + 4] = struct.pack(">I", int.from_bytes(data[at : at + 4], "big") + len(atom) + 4 - size)
    path.write_bytes(data)
    return path


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Writes a rotation into the track header of an mp4 file."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    a, b, c, d = (value * one for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def tarred(path: Path, *members: Path) -> dict[str, tuple[int, int]]:
    """Packs files into a tar file; offset and size of each by its name."""
    with tarfile.open(path, "w") as tar:
        for member in members:
            tar.add(member, member.name)
    with tarfile.open(path) as tar:
        return {member.name: (member.offset_data, member.size) for member in tar.getmembers()}


def write_waves(folder: Path, count: int, frames: int = 5) -> Path:
    """Videos 00.mp4, 01.mp4, ... of 32x48 at 8 frames a second, each with waves of its own."""
    y, x = np.mgrid[0:32, 0:48]
    for number in range(count):
        wave = [
            np.stack([np.sin((x * c + y * number + t) / 9) * 100 + 128 for c in range(3)], -1) for t in range(frames)
        ]
        write_clip(folder / f"{number:02d}.mp4", np.array(wave).astype(np.uint8), 8)
    return folder
