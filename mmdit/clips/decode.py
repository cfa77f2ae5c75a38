"""Decoding one clip: the frames of a video that a viewer sees at the asked times, or a still, at the target size.

This module imports neither torch nor Pillow nor anything that does, so that the child processes of
`mmdit.clips.reader` start fast.
"""

import os
from bisect import bisect_right

import av
import numpy as np
from av.video.frame import VideoFrame

from mmdit.clips.by_decord import by_decord
from mmdit.clips.container import Stamps, opened, time_stamps, why
from mmdit.clips.request import Decoded, ReaderName, ReadRequest
from mmdit.clips.shape import CROP_RULE, Frames, Scaler, Shape
from mmdit.clips.stills import is_still, read_still
from mmdit.clips.window import BadClip

__all__ = ["CROP_RULE", "BadClip", "Decoded", "Frames", "ReadRequest", "ReaderName", "read_clip", "read_request"]


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
    """`read_request` for a span of a whole file, by time stamp; the arguments are those of `ReadRequest`."""
    return read_request(ReadRequest(os.path.abspath(path), frames, size, fps, start, end, reader))


def read_request(request: ReadRequest) -> Decoded:
    """Reads the clip that is asked for. A still is a clip of one frame.

    The picture is turned as its rotation flag says, brought to square pixels, put on white where it has alpha, cropped
    at the centre to the target's shape, and scaled. Edit lists are followed. Decoding is strict: damage before the last
    frame needed is an error, not a patch.

    `reader="decord"` decodes through decord where its frame count and time stamps agree with the container's, and
    through PyAV elsewhere; decord conceals damage. `Decoded.reader` says which one was used.

    Raises:
        BadClip: with the reason: no video, too short for the span, damaged, too large, and so on.
    """
    if is_still(request.path, request.offset, request.length):
        return _still(request)
    try:
        return _video(request)
    except av.FFmpegError as error:
        raise BadClip(f"damaged: {why(error)}") from None


def _still(request: ReadRequest) -> Decoded:
    if request.frames > 1 or request.start:
        raise BadClip(f"too short: a still has one frame, {request.frames} from {request.start or 0:g} s on needed")
    picture, stored = read_still(request.path, request.offset, request.length)
    shape = Shape((picture.shape[0], picture.shape[1]), request.size)
    frame = shape.picture(VideoFrame.from_ndarray(picture), Scaler())
    return Decoded(
        frames=_mirrored(frame[None], request.flip),
        fps=float(request.fps), start=0.0, end=0.0, speed=1.0,
        source_frames=1, source_fps=None, source_size=stored, reader="pillow",
    )  # fmt: skip


def _video(request: ReadRequest) -> Decoded:
    first = request.start or 0.0
    length = (request.frames - 1) / request.fps
    later = None if request.stride is None else (request.frames - 1) * request.stride
    with opened(request.path, request.offset, request.length) as (container, stream):
        shape = Shape.of(stream, request.size)
        stamps = time_stamps(container, stream, first, first + length, later=later, whole=request.reader == "decord")
        source_fps = float(stream.average_rate) if stream.average_rate else None
        source_frames = len(stamps.pts) if stamps.whole else (stream.frames or None)
    picks = _picks_by_time(stamps, request) if request.stride is None else _picks_by_stride(stamps, request)
    pictures, used = _decode(request, stamps, sorted(set(picks)), shape)
    end, speed = first + length, 1.0
    if request.stride is not None and length:
        end = stamps.seconds(picks[-1])
        speed = (end - stamps.seconds(picks[0])) / length
    return Decoded(
        frames=_mirrored(np.stack([pictures[pts] for pts in picks]), request.flip),
        fps=float(request.fps), start=first, end=end, speed=speed,
        source_frames=source_frames, source_fps=source_fps, source_size=shape.stored, reader=used,
    )  # fmt: skip


def _mirrored(frames: Frames, flip: bool) -> Frames:
    return np.ascontiguousarray(frames[:, :, ::-1]) if flip else frames


def _picks_by_time(stamps: Stamps, request: ReadRequest) -> list[int]:
    """The time stamp of the frame to show for each frame of the clip."""
    start = request.start or 0.0
    times = [start + i / request.fps for i in range(request.frames)]
    _check_span(stamps, request, times[-1])
    shown = [stamps.seconds(pts) for pts in stamps.pts]
    return [stamps.pts[max(bisect_right(shown, time + stamps.slack) - 1, 0)] for time in times]


def _picks_by_stride(stamps: Stamps, request: ReadRequest) -> list[int]:
    """The same, counted in frames of the source."""
    stride = request.stride or 1
    shown = [stamps.seconds(pts) for pts in stamps.pts]
    first = max(bisect_right(shown, (request.start or 0.0) + stamps.slack) - 1, 0)
    numbers = range(first, first + (request.frames - 1) * stride + 1, stride)
    if numbers[-1] >= len(shown):
        raise BadClip(f"too short: {len(shown) - first} frames from its start on, {numbers[-1] - first + 1} needed")
    _check_span(stamps, request, max(shown[numbers[-1]], request.start or 0.0))
    return [stamps.pts[number] for number in numbers]


def _check_span(stamps: Stamps, request: ReadRequest, last: float) -> None:
    """The span and the video must both reach to second `last`."""
    start = request.start or 0.0
    if request.end is not None and last > request.end + stamps.slack:
        raise BadClip(f"too short: the span has {request.end - start:.3g} s, {last - start:.3g} s needed")
    if stamps.ended and last > stamps.length - stamps.slack:  # a frame that began there would be the last one again
        raise BadClip(f"too short: {stamps.length:.3g} s of video, more than {last:.3g} s needed")


def _decode(
    request: ReadRequest, stamps: Stamps, wanted: list[int], shape: Shape
) -> tuple[dict[int, Frames], ReaderName]:
    """The pictures by time stamp, and the reader that decoded them."""
    if request.reader == "decord" and (pictures := by_decord(request, stamps, wanted, shape)) is not None:
        return pictures, "decord"
    key = None
    if not stamps.by_order:
        key = max((pts for pts in stamps.keys if stamps.zero < pts <= wanted[0]), default=None)
    pictures = _by_pyav(request, stamps, wanted, shape, key)
    if len(pictures) < len(wanted) and key is not None:  # some containers seek past the frame asked for
        pictures = _by_pyav(request, stamps, wanted, shape, None)
    if missing := [stamps.seconds(pts) for pts in wanted if pts not in pictures]:
        raise BadClip(f"damaged: {len(missing)} frames do not decode, the first at {missing[0]:.3f} s")
    return pictures, "pyav"


def _by_pyav(
    request: ReadRequest, stamps: Stamps, wanted: list[int], shape: Shape, key: int | None
) -> dict[int, Frames]:
    """Decodes from the key frame `key` (None: from the beginning) up to the last frame wanted."""
    left = set(wanted)
    pictures: dict[int, Frames] = {}
    with opened(request.path, request.offset, request.length) as (container, stream):
        if key is not None:
            container.seek(key, stream=stream)
        scaler = Scaler()
        for number, frame in enumerate(container.decode(stream)):
            pts = frame.pts if not stamps.by_order else stamps.pts[number] if number < len(stamps.pts) else None
            if pts in left:
                if frame.is_corrupt:
                    raise BadClip("damaged: the decoder marks a frame as corrupt")
                pictures[pts] = shape.picture(frame, scaler)
                left.discard(pts)
            if not left:
                break
    return pictures
