"""Decoding through decord, imported when it is asked for."""

import io

import numpy as np
from av.video.frame import VideoFrame

from mmdit.clips.container import Stamps, opened
from mmdit.clips.request import ReadRequest
from mmdit.clips.shape import Frames, Scaler, Shape, has_alpha, turn
from mmdit.clips.window import Window


def by_decord(request: ReadRequest, stamps: Stamps, wanted: list[int], shape: Shape) -> dict[int, Frames] | None:
    """The pictures by time stamp, or None where decord disagrees with the container, drops something, or fails.

    decord conceals damage, and knows no windows: their bytes are read into memory.
    """
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    with opened(request.path, request.offset, request.length) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None or turn(first) or has_alpha(first):
            return None
    source: str | io.BytesIO = request.path
    if request.offset or request.length is not None:
        with Window(request.path, request.offset, request.length) as window:
            source = io.BytesIO(window.read())
    try:
        video = decord.VideoReader(source, ctx=decord.cpu(0), num_threads=1)
        if not stamps.whole or len(video) != len(stamps.pts):
            return None
        shown = video.get_frame_timestamp(range(len(video)))[:, 0]
        if np.abs(shown - shown[0] - [stamps.seconds(pts) for pts in stamps.pts]).max() > stamps.slack:
            return None
        scaler = Scaler()
        number = {pts: i for i, pts in enumerate(stamps.pts)}
        pictures = {}
        for pts in wanted:
            values = video[number[pts]].asnumpy()
            if values.shape != (*shape.stored, 3):  # decord2 3.4 pads the rows of some widths
                return None
            pictures[pts] = shape.picture(VideoFrame.from_ndarray(values), scaler)
        return pictures
    except decord.DECORDError:
        return None
