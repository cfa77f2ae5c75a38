"""Whether a codec can be trusted with these clips: what it gives back of them, and whether tiles change it.

The peak of the signal is 2, pixels being in [-1, 1]: PSNR = 10 log10(2^2 / mean squared error), in dB.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.errors import Refused
from mmdit.latents.codec import Codec

PROBE_FRAMES = 17  # so that the probe fits into memory untiled; two pieces of those that codecs cut time into
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
    """What a codec gives back of the probe clips; of the worst clip, in dB."""

    untiled: float
    """PSNR of the reconstruction against the clip."""
    tiled: float | None
    """The same with tiling; None where the codec does not tile, or not at this size."""
    agreement: float | None
    """PSNR of the tiled reconstruction against the untiled one, on the worst row or column of pixels."""


def check_fidelity(codec: Codec, clips: Tensor, *, floor: float, tiling_floor: float | None = None) -> Fidelity:
    """Encodes and decodes probe clips before a run, and with tiling compares tiled with untiled.

    The probe is cut to PROBE_FRAMES frames, and where the codec tiles to its lower right two tiles by two, so that it
    fits into memory untiled; tiles end there as they do in the whole picture.

    Args:
        codec: as the run will use it.
        clips: (batch, 3, frame, height, width) in [-1, 1], of the size that the run encodes.
        floor: the least PSNR in dB that a reconstruction may have, untiled and tiled.
        tiling_floor: the least agreement between tiled and untiled in dB; by default `floor`.

    Raises:
        Refused: a figure below its floor, or a size that the codec does not take.
    """
    where = type(codec.vae).__name__
    codec.latent_size((clips.shape[2], clips.shape[3], clips.shape[4]))
    clips = _probe(codec, clips)
    untiled = _again(codec.untiled(), clips)
    plain = psnr(untiled, clips).min().item()
    if not plain >= floor:  # NaN is below every floor
        raise Refused(
            "the codec does not give the probe clip back well enough", where=where, got=f"{plain:.1f} dB PSNR",
            expected=f"at least {floor:g} dB", fix="take another codec, encode at a larger size, or lower the floor",
        )  # fmt: skip
    if codec.tile is None or max(clips.shape[3:]) <= codec.tile:
        return Fidelity(plain, None, None)
    tiled = _again(codec, clips)
    with_tiles, agreement = psnr(tiled, clips).min().item(), worst_line_psnr(tiled, untiled).min().item()
    fix = f"encode without tiling, or with tiles larger than {codec.tile} pixels"
    if not with_tiles >= floor:
        raise Refused(
            "tiling spoils the probe clip", where=where, got=f"{with_tiles:.1f} dB PSNR, untiled {plain:.1f} dB",
            expected=f"at least {floor:g} dB", fix=fix,
        )  # fmt: skip
    least = floor if tiling_floor is None else tiling_floor
    if not agreement >= least:
        raise Refused(
            "the tiles can be seen", where=where,
            got=f"{agreement:.1f} dB PSNR between tiled and untiled on the worst row or column",
            expected=f"at least {least:g} dB", fix=fix,
        )  # fmt: skip
    return Fidelity(plain, with_tiles, agreement)


def _again(codec: Codec, clips: Tensor) -> Tensor:
    return codec.decode(codec.encode(clips).mean).to(clips)


def _probe(codec: Codec, clips: Tensor) -> Tensor:
    clips = clips[:, :, : codec.nearest_frames(min(clips.shape[2], PROBE_FRAMES))]
    tiling = codec.tiling
    if tiling is None:
        return clips
    size, stride = tiling["size"], tiling["size"] - tiling["overlap"]
    # Whole strides go, so that the last tile is as wide as it was.
    height, width = (side - max(0, math.ceil((side - 2 * size) / stride)) * stride for side in clips.shape[3:])
    return clips[..., -height:, -width:]
