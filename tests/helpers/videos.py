"""Video files whose frames tell their number."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from mmdit.clips.decode import Decoded

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
