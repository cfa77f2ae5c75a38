"""Clips that were read, into latents: the codec's part, alike for a store and for training from videos."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mmdit.clips.decode import Decoded
from mmdit.clips.video import frames_to_clip
from mmdit.errors import Stopped
from mmdit.latents.codec import Codec
from mmdit.latents.plan import Planned
from mmdit.latents.request import DTYPES

AHEAD_BYTES = 512 << 20  # decoded frames that wait for the codec

Read = Sequence[tuple[Planned, Decoded]]
"""Clips that were read."""
L = TypeVar("L")


def as_memory_allows(encode: Callable[[Read], list[L]], batch: Read) -> list[L]:
    """`encode(batch)`, of clips of one shape; in two halves where the memory is too small for all at once.

    Raises:
        Stopped: out of memory with one clip.
    """
    try:
        return encode(batch)
    except torch.OutOfMemoryError as error:
        if len(batch) == 1:
            raise Stopped(
                "out of memory", where=batch[0][0].clip.path, got=f"1 clip of {batch[0][0].bucket} a batch",
                fix="use smaller buckets, tiling on, precision bfloat16, or a larger device",
            ) from error  # fmt: skip
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(batch) // 2
    return as_memory_allows(encode, batch[:half]) + as_memory_allows(encode, batch[half:])


def encode_batch(codec: Codec, batch: Read, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """(clips, mean, deviation) of clips of one shape, (batch, ...) on the CPU; the latents in the type to be kept."""
    clips = torch.stack([frames_to_clip(decoded.frames) for _, decoded in batch])
    posterior = codec.encode(clips)
    return clips, posterior.mean.to("cpu", DTYPES[dtype]), posterior.std.to("cpu", DTYPES[dtype])


def fault_of(mean: Tensor, std: Tensor) -> str | None:
    """Why a latent is not used, if it is not."""
    if mean.isfinite().all() and std.isfinite().all():
        return None
    return "latent not finite: the codec cannot encode it, or its values are too large for the type"
