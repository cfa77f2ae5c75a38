"""What a stored picture is cut and scaled by: one rule for video frames and for stills."""

import contextlib
import struct
from dataclasses import dataclass
from typing import Any, Self

import av
import av.filter
import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from mmdit.clips.container import MAX_PIXELS
from mmdit.clips.window import BadClip

Frames = np.ndarray[Any, np.dtype[np.uint8]]

# It is part of a stored latent's identity: change it when the pixels change.
CROP_RULE = "centre, bicubic, alpha on white"
_FLAGS = "bicubic+accurate_rnd+bitexact+full_chroma_int+full_chroma_inp"


class Scaler:
    """FFmpeg's scale filter, set up for one kind of frame at a time.

    Unlike PyAV's own reformatter it heeds where the chroma samples lie, which that one takes to be the centre.
    """

    def __init__(self) -> None:
        self._kind: tuple[object, ...] = ()
        self._graph = av.filter.Graph()

    def scaled(self, frame: VideoFrame, height: int, width: int, pixels: str = "rgb24") -> Frames:
        """(height, width, channel) of kind `pixels`."""
        kind = (
            frame.height, frame.width, frame.format.name, frame.colorspace, frame.color_range, height, width, pixels
        )  # fmt: skip
        if kind != self._kind:
            self._graph, self._kind = _graph(frame, height, width, pixels), kind
        self._graph.push(frame)
        scaled: Any = self._graph.pull()
        return np.asarray(scaled.to_ndarray())


def _graph(frame: VideoFrame, height: int, width: int, pixels: str) -> av.filter.Graph:
    facts = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
    if not frame.format.is_rgb:
        facts += f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
    graph = av.filter.Graph()
    with contextlib.suppress(AttributeError):  # PyAV before 18 cannot be told, and starts idle threads
        graph.threads = 1
    graph.link_nodes(
        graph.add("buffer", facts),
        graph.add("scale", f"{width}:{height}:flags={_FLAGS}"),
        graph.add("format", pixels),
        graph.add("buffersink"),
    ).configure()
    return graph


@dataclass(frozen=True)
class Shape:
    """How a stored picture becomes one of the target size: on white where it has alpha, scaled until it covers the
    target, turned, cut at the centre."""

    stored: tuple[int, int]
    size: tuple[int, int]
    aspect: float = 1.0
    """Width of a pixel over its height."""

    @classmethod
    def of(cls, stream: VideoStream, size: tuple[int, int]) -> Self:
        context = stream.codec_context
        ratio = stream.sample_aspect_ratio or context.sample_aspect_ratio
        return cls((context.height, context.width), size, float(ratio) if ratio else 1.0)

    def picture(self, frame: VideoFrame, scaler: Scaler) -> Frames:
        """RGB (height, width, 3) of the target size.

        Raises:
            BadClip: the frame has another size than the video, is turned or mirrored in a way that is not handled, or
                would cover the target only at a huge size.
        """
        if (frame.height, frame.width) != self.stored:
            raise BadClip("the picture size changes within the video")
        rotation = turn(frame)
        height, width = self.size[::-1] if rotation % 180 else self.size
        shown_width = frame.width * self.aspect
        scale = max(height / frame.height, width / shown_width)
        cover_height = max(height, round(frame.height * scale))
        cover_width = max(width, round(shown_width * scale))
        if cover_height * cover_width > MAX_PIXELS:
            raise BadClip(f"too far from the target's shape: {frame.height}x{frame.width}")
        if has_alpha(frame):
            rgba = scaler.scaled(frame, frame.height, frame.width, "rgba")
            frame = VideoFrame.from_ndarray(on_white(rgba))
        scaled = scaler.scaled(frame, cover_height, cover_width)
        top, left = (cover_height - height) // 2, (cover_width - width) // 2
        rgb = scaled[top : top + height, left : left + width]
        return np.ascontiguousarray(np.rot90(rgb, rotation // 90 % 4))


def turn(frame: VideoFrame) -> int:
    """Degrees, a multiple of 90, by which the frame is to be turned counter-clockwise to be shown.

    Raises:
        BadClip: the header wants another angle, or the picture mirrored.
    """
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)  # type: ignore[call-overload]  # its stub says str
    if matrix is None:
        return 0
    a, b, _, c, d = struct.unpack("=5i", bytes(matrix)[:20])
    if a * d - b * c < 0:
        raise BadClip("mirrored by its header")
    if frame.rotation % 90:
        raise BadClip(f"turned by {frame.rotation} degrees")
    return frame.rotation


def has_alpha(frame: VideoFrame) -> bool:
    """Whether there is alpha in the frame, or may be in its palette."""
    return frame.format.has_palette or any(part.is_alpha for part in frame.format.components)


def on_white(rgba: Frames) -> Frames:
    """RGBA (height, width, 4), colours not multiplied by alpha, as RGB on a white ground."""
    alpha = rgba[..., 3:].astype(np.uint16)
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
