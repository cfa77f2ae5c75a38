"""Opening a video file and finding the time stamps of its frames, without decoding any."""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from mmdit.clips.window import BadClip, Window

MAX_PIXELS = 7680 * 4320  # of one source picture: 8K
MAX_STAMPS = 200_000  # time stamps looked at for one clip
SLACK = 1e-3, 5e-3  # seconds, least and most, by which a frame may come late: containers round their time stamps

# Only containers that hold the video themselves: a play list could name any other file or address.
_CONTAINERS = "mov,mp4,matroska,webm,avi,gif,mpegts,mpeg,flv,asf,ogg"
_COVER_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC


@contextmanager
def opened(path: str, offset: int = 0, length: int | None = None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream, with a strict single-threaded decoder that refuses huge pictures.

    Bytes [offset, offset + length) of the file hold the video; by default all of them.

    Raises:
        BadClip: the file cannot be opened, has no video that can be decoded, or pictures above MAX_PIXELS.
    """
    av.logging.set_level(None)
    # A whole file is read by FFmpeg itself; no protocol that exists is allowed beside a window.
    whole = offset == 0 and length is None
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file" if whole else "none"}
    with Window(path, offset, length) as window:
        try:
            container = av.open(path if whole else window, "r", options=options)
        except av.FFmpegError as error:
            raise BadClip(f"not a video: {why(error)}") from None
        with container:
            yield container, _video_stream(container)


def _video_stream(container: InputContainer) -> VideoStream:
    streams = [stream for stream in container.streams.video if not stream.disposition.value & _COVER_PICTURE]
    if not streams:
        raise BadClip("no video stream" + (": only a cover picture" if container.streams.video else ""))
    stream = streams[0]
    context = stream.codec_context
    if context is None:
        raise BadClip("no decoder for its video codec")
    check_pixels(context.height, context.width)
    if stream.metadata.get("alpha_mode") == "1":
        raise BadClip("an alpha layer of its own (VP8 or VP9 with alpha), which its decoder drops")
    stream.thread_type = "NONE"
    context.thread_count = 1
    context.options = {"err_detect": "explode", "max_pixels": str(MAX_PIXELS)}
    return stream


def check_pixels(height: int, width: int) -> None:
    """Refuses a picture by the size that its header says, before anything is decoded."""
    if height * width == 0:
        raise BadClip("no picture size: the header lacks it")
    if height * width > MAX_PIXELS:
        raise BadClip(f"too large: {height}x{width}, at most {MAX_PIXELS} pixels")


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


def shown_packets(container: InputContainer, stream: VideoStream) -> Iterator[tuple[Packet, int]]:
    """The packets from here on whose frames are shown, each with its time stamp.

    Raises:
        BadClip: a packet without one.
    """
    for packet in container.demux(stream):
        if packet.size == 0 or packet.is_discard:
            continue
        pts = packet.pts if packet.pts is not None else packet.dts
        if pts is None:
            raise BadClip("no time stamps")
        yield packet, pts


def time_stamps(
    container: InputContainer,
    stream: VideoStream,
    start: float,
    last: float,
    *,
    later: int | None = None,
    whole: bool = False,
) -> Stamps:
    """Reads packets until the frames from second `start` to second `last` are known, or all of them (`whole`).

    With a number of frames `later`, it is that many after the one shown at `start`, whatever `last` says.
    """
    if stream.time_base is None:
        raise BadClip("no time stamps")
    unit = float(stream.time_base)
    stamps = Stamps(unit, first_stamp(container, stream), by_order=container.format.name == "avi")
    jumped = start > 10.0 and not whole and not stamps.by_order  # deep in a long video: from the key frame before
    container.seek(stamps.zero + int(start / unit) if jumped else min(stamps.zero, 0), stream=stream)
    durations: list[int] = []
    until = last if later is None else start if later == 0 else math.inf
    seen = 0
    for packet, pts in shown_packets(container, stream):
        stamps.pts.append(pts)
        durations.append(packet.duration or 0)
        if packet.is_keyframe:
            stamps.keys.append(pts)
        if len(stamps.pts) > MAX_STAMPS:
            raise BadClip(f"too many frames: more than {MAX_STAMPS} for one clip")
        if until == math.inf:
            seen += stamps.seconds(pts) > start + stamps.slack
            if seen == later:  # an earlier one may still come, which makes this time later than needed
                until = stamps.seconds(max(stamps.pts))
        # Every later packet is shown later than this one is decoded.
        if not whole and packet.dts is not None and stamps.seconds(packet.dts) > until + stamps.slack:
            break
    else:
        stamps.ended = True
    stamps.whole = stamps.ended and not jumped
    if not stamps.pts:
        raise BadClip(f"too short: it ends before {start:g} s" if jumped else "no frames")
    final = durations[stamps.pts.index(max(stamps.pts))]
    stamps.pts.sort()
    stamps.length = stamps.seconds(end_of(stamps.pts, final))
    return stamps


def end_of(pts: list[int], final: int) -> int:
    """When the last of the sorted time stamps ends; `final` is its duration, where the container says one."""
    if final <= 0 and len(pts) > 1:
        final = int(statistics.median(b - a for a, b in pairwise(pts)))
    return pts[-1] + max(final, 0)


def first_stamp(container: InputContainer, stream: VideoStream) -> int:
    """The time stamp of the first frame that is shown."""
    first: int | None = None
    for packet, pts in shown_packets(container, stream):
        first = pts if first is None else min(first, pts)
        if packet.dts is not None and packet.dts >= first:
            break
    if first is None:
        raise BadClip("no frames")
    return first
