"""Decoding one clip of a video file: the frames that a viewer sees at the asked times, at the target size.

This module imports neither torch nor anything that does, so that the child processes of
`mmdit.clips.reader` start fast.
"""

import os
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any, Literal

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from mmdit.clips.container import MAX_PIXELS, BadClip, Stamps, opened, time_stamps, why

ReaderName = Literal["pyav", "decord"]
Frames = np.ndarray[Any, np.dtype[np.uint8]]

# What a clip is cut and scaled by. It is part of a stored latent's identity: change it when the pixels change.
CROP_RULE = "centre, bicubic"
_SCALING = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
    | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)  # fmt: skip


@dataclass(frozen=True)
class ReadRequest:
    """What `read_clip` is asked for, as one value that travels to another process."""

    path: str
    frames: int
    size: tuple[int, int]
    fps: float
    start: float | None = None
    end: float | None = None
    reader: ReaderName = "pyav"


@dataclass(frozen=True)
class Decoded:
    """A decoded clip: uint8 `frames` (frame, height, width, 3) at `fps`, and what its source was.

    `start` and `end` are the times of its first and last frame in seconds from the first frame of the source.
    `source_frames` is the number of frames counted, or what the header says where counting stopped early, or None.
    `source_size` is (height, width) as stored, before rotation and pixel aspect.
    """

    frames: Frames
    fps: float
    start: float
    end: float
    source_frames: int | None
    source_fps: float | None
    source_size: tuple[int, int]
    reader: ReaderName


def read_clip(
    path: str | os.PathLike[str],
    *,
    frames: int,
    size: tuple[int, int],
    fps: float,
    start: float | None = None,
    end: float | None = None,
    reader: ReaderName = "pyav",
) -> Decoded:
    """Reads `frames` frames from `start` (by default the beginning) on, at `fps` and `size` (height, width).

    Frame i is the one a viewer sees at start + i / fps: true speed, also for variable frame rates. The picture is
    turned as its rotation flag says, brought to square pixels, cropped at the centre to the target's shape, and
    scaled. Edit lists are followed. Decoding is strict: damage before the last frame needed is an error, not a patch.

    `reader="decord"` decodes through decord where its frame count and time stamps agree with the container's, and
    through PyAV elsewhere; decord conceals damage. `Decoded.reader` says which one was used.

    Raises:
        BadClip: with the reason: no video, too short for the span, damaged, too large, and so on.
    """
    request = ReadRequest(os.path.abspath(path), frames, size, fps, start, end, reader)
    first = start or 0.0
    last = first + (frames - 1) / fps
    try:
        with opened(request.path) as (container, stream):
            shape = _Shape.of(stream, size)
            stamps = time_stamps(container, stream, first, last, whole=reader == "decord")
            source_fps = float(stream.average_rate) if stream.average_rate else None
            source_frames = len(stamps.pts) if stamps.whole else (stream.frames or None)
            source_size = (stream.codec_context.height, stream.codec_context.width)
        picks = _picks(stamps, request)
        pictures, used = _decode(request, stamps, sorted(set(picks)), shape)
    except av.FFmpegError as error:
        raise BadClip(f"damaged: {why(error)}") from None
    return Decoded(
        frames=np.stack([pictures[pts] for pts in picks]),
        fps=float(fps),
        start=first,
        end=last,
        source_frames=source_frames,
        source_fps=source_fps,
        source_size=source_size,
        reader=used,
    )


def read_request(request: ReadRequest) -> Decoded:
    """`read_clip` for a request."""
    values = {name: getattr(request, name) for name in ("frames", "size", "fps", "start", "end", "reader")}
    return read_clip(request.path, **values)


def _picks(stamps: Stamps, request: ReadRequest) -> list[int]:
    """The time stamp of the frame to show for each frame of the clip."""
    start = request.start or 0.0
    times = [start + i / request.fps for i in range(request.frames)]
    if request.end is not None and times[-1] > request.end + stamps.slack:
        raise BadClip(f"too short: the span has {request.end - start:.3g} s, {times[-1] - start:.3g} s needed")
    if stamps.ended and times[-1] > stamps.length + stamps.slack:
        raise BadClip(f"too short: {stamps.length:.3g} s of video, {times[-1]:.3g} s needed")
    shown = [stamps.seconds(pts) for pts in stamps.pts]
    return [stamps.pts[max(bisect_right(shown, time + stamps.slack) - 1, 0)] for time in times]


@dataclass(frozen=True)
class _Shape:
    """How a stored picture becomes one of the target size: scale so that it covers the target, turn, cut the centre."""

    stored: tuple[int, int]
    size: tuple[int, int]
    aspect: float
    """Width of a pixel over its height."""

    @classmethod
    def of(cls, stream: VideoStream, size: tuple[int, int]) -> "_Shape":
        context = stream.codec_context
        ratio = stream.sample_aspect_ratio or context.sample_aspect_ratio
        return cls((context.height, context.width), size, float(ratio) if ratio else 1.0)

    def picture(self, frame: VideoFrame, reformatter: VideoReformatter, rotation: int) -> Frames:
        """RGB (height, width, 3) of the target size; `rotation` is counter-clockwise, in degrees."""
        if (frame.height, frame.width) != self.stored:
            raise BadClip("the picture size changes within the video")
        if rotation % 90:
            raise BadClip(f"turned by {rotation} degrees")
        turned = rotation % 180 == 90
        height, width = self.size[::-1] if turned else self.size
        shown_width = frame.width * self.aspect
        scale = max(height / frame.height, width / shown_width)
        cover_height = max(height, round(frame.height * scale))
        cover_width = max(width, round(shown_width * scale))
        if cover_height * cover_width > MAX_PIXELS:
            raise BadClip(f"too far from the target's shape: {frame.height}x{frame.width}")
        scaled = reformatter.reformat(
            frame, width=cover_width, height=cover_height, format="rgb24", interpolation=_SCALING, threads=1
        )
        top, left = (cover_height - height) // 2, (cover_width - width) // 2
        rgb = scaled.to_ndarray()[top : top + height, left : left + width]
        return np.ascontiguousarray(np.rot90(rgb, rotation // 90 % 4))


def _decode(
    request: ReadRequest, stamps: Stamps, wanted: list[int], shape: _Shape
) -> tuple[dict[int, Frames], ReaderName]:
    """The pictures by time stamp, and the reader that decoded them."""
    if request.reader == "decord" and (pictures := _by_decord(request.path, stamps, wanted, shape)) is not None:
        return pictures, "decord"
    key = None
    if not stamps.by_order:
        key = max((pts for pts in stamps.keys if stamps.zero < pts <= wanted[0]), default=None)
    pictures = _by_pyav(request.path, stamps, wanted, shape, key)
    if len(pictures) < len(wanted) and key is not None:  # some containers seek past the frame asked for
        pictures = _by_pyav(request.path, stamps, wanted, shape, None)
    if missing := [stamps.seconds(pts) for pts in wanted if pts not in pictures]:
        raise BadClip(f"damaged: {len(missing)} frames do not decode, the first at {missing[0]:.3f} s")
    return pictures, "pyav"


def _by_pyav(path: str, stamps: Stamps, wanted: list[int], shape: _Shape, key: int | None) -> dict[int, Frames]:
    """Decodes from the key frame `key` (None: from the beginning) up to the last frame wanted."""
    left = set(wanted)
    pictures: dict[int, Frames] = {}
    with opened(path) as (container, stream):
        if key is not None:
            container.seek(key, stream=stream)
        reformatter = VideoReformatter()
        for number, frame in enumerate(container.decode(stream)):
            pts = frame.pts if not stamps.by_order else stamps.pts[number] if number < len(stamps.pts) else None
            if pts in left:
                if frame.is_corrupt:
                    raise BadClip("damaged: the decoder marks a frame as corrupt")
                pictures[pts] = shape.picture(frame, reformatter, frame.rotation)
                left.discard(pts)
            if not left:
                break
    return pictures


def _by_decord(path: str, stamps: Stamps, wanted: list[int], shape: _Shape) -> dict[int, Frames] | None:
    """The same through decord, or None where it disagrees with the container or fails."""
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    with opened(path) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None or first.rotation:
            return None
    try:
        video = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
        if not stamps.whole or len(video) != len(stamps.pts):
            return None
        shown = video.get_frame_timestamp(range(len(video)))[:, 0]
        if np.abs(shown - shown[0] - [stamps.seconds(pts) for pts in stamps.pts]).max() > stamps.slack:
            return None
        reformatter = VideoReformatter()
        number = {pts: i for i, pts in enumerate(stamps.pts)}
        pictures = {}
        for pts in wanted:
            values = video[number[pts]].asnumpy()
            if values.shape != (*shape.stored, 3):  # decord2 3.4 pads the rows of some widths
                return None
            pictures[pts] = shape.picture(VideoFrame.from_ndarray(values), reformatter, 0)
        return pictures
    except decord.DECORDError:
        return None
