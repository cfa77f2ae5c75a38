"""Whether a codec can be trusted with these clips: what it gives back of them, and whether tiles change it.

The peak of the signal is 2, pixels being in [-1, 1]: PSNR = 10 log10(2^2 / mean squared error), in dB.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.latents.codec_specs import TILE_OVERLAP

PROBE_FRAMES = 17  # to be quick and to fit into memory untiled; enough for two of the pieces that codecs cut time into
_LEAST_ERROR = 1e-10  # equal clips have 106 dB, not infinity


def psnr(clips: Tensor, others: Tensor) -> Tensor:
    """PSNR of each clip in dB, float64 (batch,): (batch, channel, frame, height, width) against the same shape."""
    return _decibels((clips - others).square().mean(dim=(1, 2, 3, 4), dtype=torch.float64))


def worst_line_psnr(clips: Tensor, others: Tensor) -> Tensor:
    """PSNR of each clip's worst row or column of pixels in dB, float64 (batch,).

    Over channels, frames and the length of the line. A wrong seam between tiles is a few lines, which a mean over the
    whole picture hides.
    """
    error = (clips - others).square()
    rows, columns = (error.mean(dim=(1, 2, side), dtype=torch.float64) for side in (4, 3))
    return _decibels(torch.cat([rows, columns], dim=1).amax(dim=1))


def _decibels(error: Tensor) -> Tensor:
    return 10 * torch.log10(4 / error.clamp(min=_LEAST_ERROR))


@dataclass(frozen=True)
class Fidelity:
    """What a codec gives back of probe clips; of the worst clip, PSNR in dB."""

    psnr: float
    """Of the reconstruction, made as the run will make it."""
    tiled: float | None
    """Of the tiled reconstruction of the middle part; None where the codec does not tile clips of this size."""
    untiled: float | None
    """Of the untiled reconstruction of the same part."""
    agreement: float | None
    """Of these two against each other, on the worst row or column of pixels."""


def check_fidelity(codec: Codec, clips: Tensor, *, floor: float, tiling_floor: float | None = None) -> Fidelity:
    """Encodes and decodes probe clips before a run, and where the codec tiles compares tiled with untiled.

    The first PROBE_FRAMES frames are taken. Untiled and tiled are compared on a middle part of at most two tiles by
    two, which fits into memory untiled; its last tiles are as wide as those of the whole picture.

    Args:
        codec: as the run will use it.
        clips: (batch, 3, frame, height, width) in [-1, 1], of the size that the run encodes.
        floor: the least PSNR in dB that a reconstruction may have.
        tiling_floor: the least agreement between tiled and untiled in dB; by default `floor`.

    Raises:
        Refused: a figure below its floor, or a size that the codec does not take.
    """
    where = type(codec.vae).__name__
    codec.latent_size((clips.shape[2], clips.shape[3], clips.shape[4]))
    clips = clips[:, :, : codec.nearest_frames(min(clips.shape[2], PROBE_FRAMES))]
    tiled = untiled = agreement = None
    if codec.tile is not None and max(clips.shape[3:]) > codec.tile:
        part = _middle(clips, codec.tile, codec.tile - int(codec.tile * TILE_OVERLAP))
        with_tiles, without = _again(codec, part), _again(codec.untiled(), part)
        tiled, untiled = _worst(psnr(with_tiles, part)), _worst(psnr(without, part))
        agreement = _worst(worst_line_psnr(with_tiles, without))
        least = floor if tiling_floor is None else tiling_floor
        if not agreement >= least:  # NaN is below every floor
            raise Refused(
                "tiling changes what the codec gives back", where=where,
                got=f"{agreement:.1f} dB PSNR between tiled and untiled on the worst row or column of the probe clip"
                f" (against the clip {tiled:.1f} dB tiled and {untiled:.1f} dB untiled)",
                expected=f"at least {least:g} dB", fix=f"encode untiled or with tiles larger than {codec.tile} pixels",
            )  # fmt: skip
    whole = _worst(psnr(_again(codec, clips), clips))
    if not whole >= floor:
        raise Refused(
            "the codec does not give the probe clip back well enough", where=where, got=f"{whole:.1f} dB PSNR",
            expected=f"at least {floor:g} dB", fix="take another codec, encode at a larger size, or lower the floor",
        )  # fmt: skip
    return Fidelity(whole, tiled, untiled, agreement)


def _again(codec: Codec, clips: Tensor) -> Tensor:
    return codec.decode(codec.encode(clips).mean).to(clips)


def _worst(figures: Tensor) -> float:
    return figures.min().item()


def _middle(clips: Tensor, size: int, stride: int) -> Tensor:
    """At most two tiles by two; whole strides are cut off."""
    for axis in (3, 4):
        side = clips.shape[axis]
        kept = side - max(0, math.ceil((side - 2 * size) / stride)) * stride
        clips = clips.narrow(axis, (side - kept) // 2, kept)
    return clips
