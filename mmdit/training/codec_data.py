"""What a codec learns from: clips held in memory as bytes, and the batches cut from them."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmdit import seeds
from mmdit.clips.decode import BadClip, read_clip
from mmdit.clips.source import find_clips
from mmdit.errors import Refused

Kind = Literal["clip", "long", "image", "mosaic", "enlarged"]


def read_split(
    folder: str | Path,
    split: str,
    *,
    frames: int,
    size: tuple[int, int],
    fps: float,
    most: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The clips of one split as bytes (clip, frame, height, width, 3), evenly chosen when there are more than `most`.

    Raises:
        Refused: no clip of that split, or one that cannot be read.
    """
    clips = [clip for clip in find_clips(folder) if clip.split == split]
    if not clips:
        raise Refused("no clips to train a codec on", where=folder, got=f"none of split {split}")
    count = min(len(clips), most or len(clips))
    chosen = [clips[i * len(clips) // count] for i in range(count)]
    data = torch.empty((count, frames, *size, 3), dtype=torch.uint8)
    for row, clip in enumerate(chosen):
        try:
            read = read_clip(
                Path(folder) / clip.path, frames=frames, size=size, fps=fps, start=clip.start, end=clip.end
            )
        except BadClip as bad:
            raise Refused("a clip cannot be read", where=Path(folder) / clip.path, got=bad.reason) from None
        data[row] = torch.from_numpy(read.frames)
        if progress is not None:
            progress(row + 1, count)
    return data


def to_clips(data: Tensor) -> Tensor:
    """Bytes (clip, frame, height, width, 3) to clips (clip, 3, frame, height, width) in [-1, 1]."""
    return data.permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def make_batch(data: Tensor, kind: Kind, *, batch_size: int, frames: int, seed: int, step: int) -> Tensor:
    """The batch of one training step, a function of its arguments alone; half of them mirrored.

    Every kind costs about as much as `batch_size` clips of `frames` frames:

    - "clip": so many clips, begun at any frame;
    - "long": half as many, of all their frames;
    - "image": four times as many single frames;
    - "mosaic": four clips to a picture of twice the height and width, so that pictures larger than those in the data,
      and places far from every border, are met;
    - "enlarged": a quarter as many, smoothly enlarged to twice the height and width.
    """
    draw = seeds.generator(seed, "codec batch", step)
    whole = data.shape[1]
    count, length = {
        "clip": (batch_size, frames),
        "long": (max(1, batch_size // 2), whole),
        "image": (4 * batch_size, 1),
        "mosaic": (4 * max(1, batch_size // 4), frames),
        "enlarged": (max(1, batch_size // 4), frames),
    }[kind]
    rows = torch.randint(len(data), (count,), generator=draw)
    begin = int(torch.randint(whole - length + 1, (), generator=draw))
    clips = to_clips(data[rows, begin : begin + length])
    if torch.rand((), generator=draw) < 0.5:
        clips = clips.flip(-1)
    if kind == "mosaic":
        left, right = clips[0::2], clips[1::2]
        pairs = torch.cat([left, right], dim=-1)
        clips = torch.cat([pairs[0::2], pairs[1::2]], dim=-2)
    if kind == "enlarged":
        clips = torch.nn.functional.interpolate(clips, scale_factor=(1, 2, 2), mode="trilinear")
    return clips.contiguous(memory_format=torch.channels_last_3d)
