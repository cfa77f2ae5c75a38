"""What a file holds, from its header and packets: for planning, before any clip is decoded."""

import math
from dataclasses import dataclass
from typing import Literal

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from mmdit.clips.container import MAX_STAMPS, end_of, first_stamp, opened, shown_packets, why
from mmdit.clips.shape import Shape, turn
from mmdit.clips.stills import is_still, still_size
from mmdit.clips.window import BadClip

FRONT_PACKETS = 1_000  # read from the start; a video with no more is known exactly
TAIL = 2.0  # seconds before the end that the header says from which a longer video is read to its end
RATE_TOLERANCE = 0.01  # by which the header's rate may differ from that of the packets


@dataclass(frozen=True)
class ProbeRequest:
    """Bytes [`offset`, `offset` + `length`) of the file `path`, by default all of them."""

    path: str
    offset: int = 0
    length: int | None = None


@dataclass(frozen=True)
class Probed:
    """A video or an image.

    `duration` is in seconds from the first frame shown to the end of the last, by the time stamps of the packets; 0
    for an image. Where a file is cut short it is that of what is left. `frames` is the number of frames shown, where it
    is known. `fps` is the average rate. `size` is (height, width) as shown: after rotation and pixel aspect.
    """

    kind: Literal["video", "image"]
    duration: float
    frames: int | None
    fps: float | None
    size: tuple[int, int]


def probe(request: ProbeRequest) -> Probed:
    """Probes a file. Of a video one frame is decoded, the first, which says how the picture is turned.

    Raises:
        BadClip: as `mmdit.clips.decode.read_request` does.
    """
    place = (request.path, request.offset, request.length)
    if is_still(*place):
        return Probed("image", 0.0, 1, None, still_size(*place))
    try:
        with opened(*place) as (container, stream):
            size = _shown_size(container, stream)
            return Probed("video", *_timing(container, stream), size)
    except av.FFmpegError as error:
        raise BadClip(f"damaged: {why(error)}") from None


def _shown_size(container: InputContainer, stream: VideoStream) -> tuple[int, int]:
    frame = next(container.decode(stream), None)
    if frame is None:
        raise BadClip("no frames")
    shape = Shape.of(stream, (1, 1))
    height, width = shape.stored[0], max(1, round(shape.stored[1] * shape.aspect))
    return (width, height) if turn(frame) % 180 else (height, width)


@dataclass
class _Stretch:
    """Frames of a video, from its start or from near its end on."""

    count: int
    first: int
    last: int
    end: int
    ended: bool
    """Nothing that can be read comes after them."""


def _timing(container: InputContainer, stream: VideoStream) -> tuple[float, int | None, float | None]:
    """Seconds, number of frames and frames a second."""
    if stream.time_base is None:
        raise BadClip("no time stamps")
    unit = float(stream.time_base)
    container.seek(0)
    zero = first_stamp(container, stream)
    rate = float(stream.average_rate) if stream.average_rate else None
    front = _stretch(container, stream, min(zero, 0), FRONT_PACKETS)
    if front is not None and not front.ended:
        header = _header_seconds(container, stream)
        tail = _stretch(container, stream, zero + int((header - TAIL) / unit), MAX_STAMPS) if header > TAIL else None
        if tail is not None and tail.ended and tail.end > front.end:
            duration = (tail.end - zero) * unit
            if stream.frames and rate and abs(stream.frames / rate - duration) < 0.5:
                return duration, stream.frames, rate
            return duration, None, _checked_rate(rate, front, unit)
        front = _stretch(container, stream, min(zero, 0), MAX_STAMPS)
    if front is None:
        raise BadClip("no frames")
    return (front.end - zero) * unit, front.count if front.ended else None, _checked_rate(rate, front, unit)


def _checked_rate(rate: float | None, seen: _Stretch, unit: float) -> float | None:
    """The header's rate, or that of the packets where they differ."""
    if seen.last == seen.first:
        return rate
    measured = (seen.count - 1) / ((seen.last - seen.first) * unit)
    return rate if rate is not None and math.isclose(rate, measured, rel_tol=RATE_TOLERANCE) else measured


def _header_seconds(container: InputContainer, stream: VideoStream) -> float:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return (container.duration or 0) / av.time_base


def _stretch(container: InputContainer, stream: VideoStream, start: int, most: int) -> _Stretch | None:
    """The packets from the key frame before time stamp `start` on, `most` of them; None where there are none."""
    pts: list[int] = []
    longest: dict[int, int] = {}
    ended = True
    try:
        container.seek(start, stream=stream)
        for packet, stamp in shown_packets(container, stream):
            if packet.is_corrupt:
                continue
            pts.append(stamp)
            longest[stamp] = packet.duration or 0
            if len(pts) == most:
                ended = False
                break
    except av.FFmpegError:
        pass  # what is damaged or cut off ends what can be read
    if not pts:
        return None
    pts.sort()
    return _Stretch(len(pts), pts[0], pts[-1], end_of(pts, longest[pts[-1]]), ended)
