"""Opening a video file and finding the time stamps of its frames, without decoding any."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

MAX_PIXELS = 7680 * 4320  # of one source picture: 8K
MAX_STAMPS = 200_000  # time stamps looked at for one clip
SLACK = 1e-3, 5e-3  # seconds, least and most, by which a frame may come late: containers round their time stamps

# Only containers that hold the video themselves: a play list could name any other file or address.
_CONTAINERS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
_COVER_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC


class BadClip(Exception):
    """A clip that cannot be read. `reason` is one line: what kind of fault, then a colon and the details."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


@contextmanager
def opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream, with a strict single-threaded decoder that refuses huge pictures."""
    av.logging.set_level(None)
    try:
        if Path(path).stat().st_size == 0:
            raise BadClip("empty file")
        container = av.open(path, options={"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"})
    except FileNotFoundError:
        raise BadClip("no such file") from None
    except PermissionError:
        raise BadClip("no permission to read it") from None
    except av.FFmpegError as error:
        raise BadClip(f"not a video: {why(error)}") from None
    with container:
        streams = [stream for stream in container.streams.video if not int(stream.disposition) & _COVER_PICTURE]
        if not streams:
            raise BadClip("no video stream" + (": only a cover picture" if container.streams.video else ""))
        stream = streams[0]
        context = stream.codec_context
        if context is None:
            raise BadClip("no decoder for its video codec")
        if context.width * context.height == 0:
            raise BadClip("no picture size: the header lacks it")
        if context.width * context.height > MAX_PIXELS:
            raise BadClip(f"too large: {context.height}x{context.width}, at most {MAX_PIXELS} pixels")
        stream.thread_type = "NONE"
        context.thread_count = 1
        context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
        yield container, stream


def why(error: av.FFmpegError) -> str:
    """What FFmpeg says is wrong, without paths and numbers of its own."""
    detail = str(error.log[-1]).strip() if error.log else ""
    return " ".join(f"{error.strerror or error}{f' ({detail})' if detail else ''}".split())[:200]


@dataclass
class Stamps:
    """The time stamps of the frames around a span, in the stream's own unit, sorted."""

    unit: float
    """Seconds a tick."""
    zero: int
    """The first frame of the video."""
    pts: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    length: float = 0.0
    """Seconds of video from `zero`; only where `ended`."""
    ended: bool = False
    """The end of the video was reached."""
    whole: bool = False
    """Every frame of the video is in `pts`."""
    by_order: bool = False
    """The container has the times, but not whose they are (AVI with B-frames): the n-th frame has the n-th."""

    def seconds(self, pts: int) -> float:
        return (pts - self.zero) * self.unit

    @property
    def slack(self) -> float:
        """Half a tick, within SLACK."""
        return min(max(self.unit / 2, SLACK[0]), SLACK[1])


def time_stamps(
    container: InputContainer, stream: VideoStream, start: float, last: float, *, whole: bool = False
) -> Stamps:
    """Reads packets until the frames from second `start` to second `last` are known, or all of them (`whole`)."""
    if stream.time_base is None:
        raise BadClip("no time stamps")
    unit = float(stream.time_base)
    stamps = Stamps(unit, _first_stamp(container, stream), by_order=container.format.name == "avi")
    jumped = start > 10.0 and not whole and not stamps.by_order  # deep in a long video: from the key frame before
    container.seek(stamps.zero + int(start / unit) if jumped else min(stamps.zero, 0), stream=stream)
    durations: list[int] = []
    for packet in container.demux(stream):
        pts = packet.pts if packet.pts is not None else packet.dts
        if packet.size == 0 or packet.is_discard:
            continue
        if pts is None:
            raise BadClip("no time stamps")
        stamps.pts.append(pts)
        durations.append(packet.duration or 0)
        if packet.is_keyframe:
            stamps.keys.append(pts)
        if len(stamps.pts) > MAX_STAMPS:
            raise BadClip(f"too many frames: more than {MAX_STAMPS} for one clip")
        # Every later packet is shown later than this one is decoded.
        if not whole and packet.dts is not None and stamps.seconds(packet.dts) > last + stamps.slack:
            break
    else:
        stamps.ended = True
    stamps.whole = stamps.ended and not jumped
    if not stamps.pts:
        raise BadClip(f"too short: it ends before {start:g} s" if jumped else "no frames")
    final = durations[stamps.pts.index(max(stamps.pts))]
    stamps.pts.sort()
    if final <= 0 and len(stamps.pts) > 1:
        final = int(statistics.median(b - a for a, b in zip(stamps.pts, stamps.pts[1:], strict=False)))
    stamps.length = stamps.seconds(stamps.pts[-1] + max(final, 0))
    return stamps


def _first_stamp(container: InputContainer, stream: VideoStream) -> int:
    """The time stamp of the first frame that is shown."""
    first: int | None = None
    for packet in container.demux(stream):
        pts = packet.pts if packet.pts is not None else packet.dts
        if packet.size == 0 or packet.is_discard or pts is None:
            continue
        first = pts if first is None else min(first, pts)
        if packet.dts is not None and packet.dts >= first:
            break
    if first is None:
        raise BadClip("no frames")
    return first
