"""Writing clips: H.264 mp4 files with their facts inside, stills, and the way between frames and clip tensors."""

import contextlib
import gc
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mmdit import files
from mmdit.errors import Refused

if TYPE_CHECKING:
    import torch

# without "cpu-independent", x264 writes slightly different bytes from time to time, and on other processors (measured)
SAME_BYTES = "deterministic=1:cpu-independent=1:threads=1:lookahead-threads=1:sliced-threads=0"
Frames = NDArray[np.uint8]  # (frame, height, width, 3)


def _checked(frames: Frames) -> Frames:
    frames = np.ascontiguousarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise Refused(
            "these are no frames", got=f"{frames.dtype} of shape {frames.shape}",
            expected="uint8 of shape (frame, height, width, 3)",
        )  # fmt: skip
    return frames


def write_clip(
    path: str | Path,
    frames: Frames,
    fps: float,
    *,
    metadata: Mapping[str, str] | None = None,
    quality: int = 15,
) -> None:
    """Writes frames, uint8 (frame, height, width, 3), as an H.264 mp4 file that plays everywhere.

    The same frames give the same bytes. `metadata` is kept in the file (`read_metadata`). `quality` is x264's constant
    rate factor: 0 is lossless, 15 is hard to tell from the original. Raises Refused for other arrays, odd sizes (the
    colour planes of yuv420p are half as large) and rates that are not positive.
    """
    frames = _checked(frames)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        near = f"{height - height % 2 or 2}x{width - width % 2 or 2}"
        raise Refused(
            "an mp4 clip needs an even height and width", where=path, got=f"{height}x{width}", fix=f"use {near}"
        )
    if not fps > 0:
        raise Refused("a clip needs a positive frame rate", where=path, got=fps)
    comment = json.dumps(dict(metadata), sort_keys=True, ensure_ascii=False) if metadata else ""
    with _quick_collection(), files.new_file(path, durable=False) as part:
        _encode(part, frames, fps, comment, quality)


def _encode(path: Path, frames: Frames, fps: float, comment: str, quality: int) -> None:
    import imageio.v3 as iio

    # the index goes to the front of the file in a second pass, for which the muxer opens the file by its name
    settings: dict[str, Any] = {"options": {"movflags": "+faststart"}}
    with iio.imopen(path, "w", plugin="pyav", **settings) as writer:
        if comment:
            writer._container.metadata["comment"] = comment
        writer.init_video_stream("libx264", fps=fps, pixel_format="yuv420p")
        writer._video_stream.codec_context.thread_count = 1
        writer._video_stream.options = {"crf": str(quality), "preset": "fast", "x264-params": SAME_BYTES}
        for frame in frames:
            writer.write_frame(frame)


@contextlib.contextmanager
def _quick_collection() -> Iterator[None]:
    """imageio collects garbage twice a file, which takes 0.2 s with torch loaded: let it look at new objects only."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def read_metadata(path: str | Path) -> dict[str, str]:
    """What `write_clip` kept in the file; empty for files of other makers."""
    import av

    with av.open(str(path)) as container:
        comment = container.metadata.get("comment", "")
    try:
        value = json.loads(comment)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def write_image(path: str | Path, frame: Frames) -> None:
    """Writes one frame, uint8 (height, width, 3), as a png file."""
    import imageio.v3 as iio

    frame = _checked(np.asarray(frame)[None])[0]
    files.write_bytes(path, iio.imwrite("<bytes>", frame, extension=".png"))


def frames_to_clip(frames: Frames) -> "torch.Tensor":
    """Frames, uint8 (frame, height, width, 3), as a float32 clip (3, frame, height, width) in [-1, 1]."""
    import torch

    return torch.from_numpy(_checked(frames)).permute(3, 0, 1, 2).float().div(127.5).sub(1.0).contiguous()


def clip_to_frames(clip: "torch.Tensor") -> Frames:
    """A clip (3, frame, height, width) in [-1, 1], clamped and rounded to uint8 frames (frame, height, width, 3)."""
    values = clip.detach().float().clamp(-1.0, 1.0).add(1.0).mul(127.5).round()
    return values.byte().permute(1, 2, 3, 0).contiguous().cpu().numpy()
