"""What each of diffusers' VAE classes needs said about it; what its config or its attributes know is read from there.

Classes differ in which numbers of frames they give back exactly, in where their normalisation lies, in what they return
and in how they tile: a row here says it, and `mmdit.latents.codec.Codec` treats them all alike.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import Refused

TILE_OVERLAP = 0.25
"""The part of a tile that its neighbour has too, for every class. A binary fraction: whole pixels stay whole."""


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _config_shift(vae: Any) -> Any:
    return _or(vae.config.get("latents_mean"), _or(vae.config.get("shift_factor"), 0.0))


def _config_scale(vae: Any) -> Any:
    return torch.as_tensor(_or(vae.config.get("latents_std"), 1.0)) / _or(vae.config.get("scaling_factor"), 1.0)


@dataclass(frozen=True)
class CodecSpec:
    """One class. Whatever takes a `vae` is called with a model of the class.

    Attributes:
        per_frame: its encoder takes (batch frame, channel, height, width).
        space_factor: pixels a latent cell, in height and in width.
        time_factor: frames a latent frame.
        frame_step: it gives back clips of frame_step k + 1 frames exactly.
        decodes_per_frame: each frame is decoded from its latent frame alone.
        whole_steps: it gives back clips of frame_step k frames too, k > 0. No clip of another length comes back.
        image_is_first_frame: whether a lone image has the latent of the first frame of a clip that begins with it.
        channels: latent channels.
        shift, scale: latent = (raw - shift) / scale, each a number or one a channel.
        moments: mean and deviation of the raw latents, of what `vae.encode` returns.
        decode_options: what `vae.decode` wants besides latents; called with latents of five dimensions.
        draws_noise: whether `vae.decode` draws random numbers.
        tile: sets `vae` to tiles of so many pixels a side, overlapping by TILE_OVERLAP; None: the class cannot tile.
        tile_size: the tile the class would take by itself, in pixels.
    """

    per_frame: bool
    space_factor: Callable[[Any], int]
    time_factor: Callable[[Any], int]
    frame_step: Callable[[Any], int]
    image_is_first_frame: Callable[[Any], bool]
    decodes_per_frame: bool = False
    whole_steps: bool = False
    channels: Callable[[Any], int] = lambda vae: vae.config.latent_channels
    shift: Callable[[Any], Any] = _config_shift
    scale: Callable[[Any], Any] = _config_scale
    moments: Callable[[Any], tuple[Tensor, Tensor]] = lambda out: (out.latent_dist.mean, out.latent_dist.std)
    decode_options: Callable[[Any, Tensor], dict[str, Any]] = lambda vae, latents: {}
    draws_noise: Callable[[Any], bool] = lambda vae: False
    tile: Callable[[Any, int], None] | None = None
    tile_size: Callable[[Any], int] = lambda vae: vae.tile_sample_min_height


def _tile_by_stride(vae: Any, size: int) -> None:
    stride = size - int(size * TILE_OVERLAP)
    vae.enable_tiling(
        tile_sample_min_height=size,
        tile_sample_min_width=size,
        tile_sample_stride_height=stride,
        tile_sample_stride_width=stride,
    )


def _tile_by_overlap(vae: Any, size: int) -> None:
    vae.enable_tiling(size, size, TILE_OVERLAP, TILE_OVERLAP)


def _tile_images(vae: Any, size: int) -> None:  # its enable_tiling takes no size
    vae.enable_tiling()
    vae.tile_sample_min_size = size
    vae.tile_latent_min_size = size // _halvings(vae)
    vae.tile_overlap_factor = TILE_OVERLAP


def _halvings(vae: Any) -> int:
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def _smaller_side(size: Any) -> int:
    return min(size) if isinstance(size, list | tuple) else size


# A class is supported by its row here; the tests run every promise over every row.
SPECS: dict[str, CodecSpec] = {
    "AutoencoderKL": CodecSpec(
        per_frame=True,
        space_factor=_halvings,
        time_factor=lambda vae: 1,
        frame_step=lambda vae: 1,
        image_is_first_frame=lambda vae: True,
        decodes_per_frame=True,
        tile=_tile_images,
        tile_size=lambda vae: _smaller_side(vae.tile_sample_min_size),
    ),
    # Encodes frame by frame; its decoder sees the whole clip. diffusers has no tiling for it.
    "AutoencoderKLTemporalDecoder": CodecSpec(
        per_frame=True,
        space_factor=_halvings,
        time_factor=lambda vae: 1,
        frame_step=lambda vae: 1,
        image_is_first_frame=lambda vae: True,
        decode_options=lambda vae, latents: {"num_frames": latents.shape[2]},
    ),
    # It works in pieces of two latent frames. An odd number of them makes the first piece longer, whose first latent
    # frame is one frame; in an even number each one is as many frames as the others. Norms reach over a piece.
    "AutoencoderKLCogVideoX": CodecSpec(
        per_frame=False,
        space_factor=_halvings,
        time_factor=lambda vae: int(vae.config.temporal_compression_ratio),
        frame_step=lambda vae: int(vae.config.temporal_compression_ratio) * vae.num_latent_frames_batch_size,
        image_is_first_frame=lambda vae: False,
        whole_steps=True,
        tile=_tile_by_overlap,
    ),
    # The normalisation is in buffers; the newer weights decode at a noise level, of which 0 is the clean one, and may
    # add noise of their own inside the decoder.
    "AutoencoderKLLTXVideo": CodecSpec(
        per_frame=False,
        space_factor=lambda vae: vae.spatial_compression_ratio,
        time_factor=lambda vae: vae.temporal_compression_ratio,
        frame_step=lambda vae: vae.temporal_compression_ratio,
        image_is_first_frame=lambda vae: vae.config.encoder_causal,
        shift=lambda vae: vae.latents_mean,
        scale=lambda vae: vae.latents_std / vae.config.scaling_factor,
        decode_options=lambda vae, latents: (
            {"temb": latents.new_zeros(latents.shape[0])} if vae.config.timestep_conditioning else {}
        ),
        draws_noise=lambda vae: any(vae.config.decoder_inject_noise),
        tile=_tile_by_stride,
    ),
    # diffusers' loop over time reads four frames at a time whatever the config says, and drops what is left over.
    # With a patch size a tile of the encoder is that many times larger than one of the decoder.
    "AutoencoderKLWan": CodecSpec(
        per_frame=False,
        space_factor=lambda vae: vae.config.scale_factor_spatial,
        time_factor=lambda vae: 2 ** sum(vae.config.temperal_downsample),
        frame_step=lambda vae: 4,
        image_is_first_frame=lambda vae: True,
        channels=lambda vae: vae.config.z_dim,
        tile=_tile_by_stride,
    ),
    # Not causal: norms reach over the whole clip. Over time diffusers always works in pieces of 17 frames that overlap.
    "AutoencoderKLHunyuanVideo": CodecSpec(
        per_frame=False,
        space_factor=lambda vae: vae.spatial_compression_ratio,
        time_factor=lambda vae: vae.temporal_compression_ratio,
        frame_step=lambda vae: vae.temporal_compression_ratio,
        image_is_first_frame=lambda vae: False,
        tile=_tile_by_stride,
    ),
    "AutoencoderDC": CodecSpec(
        per_frame=True,
        space_factor=lambda vae: vae.spatial_compression_ratio,
        time_factor=lambda vae: 1,
        frame_step=lambda vae: 1,
        image_is_first_frame=lambda vae: True,
        decodes_per_frame=True,
        moments=lambda out: (out.latent, torch.zeros_like(out.latent)),
        tile=_tile_by_stride,
    ),
}


def tile_side(vae: Any, tiling: bool | int) -> int | None:
    """The side of a tile in pixels, None for no tiling.

    Args:
        vae: a model of one of the classes.
        tiling: True for the tile of the class, made a little larger where it does not fit; a number for one of so many
            pixels.

    Raises:
        Refused: a class that cannot tile, or a side that does not fit its latents.
    """
    if tiling is False:
        return None
    name = type(vae).__name__
    spec = SPECS[name]
    if spec.tile is None:
        raise Refused("diffusers has no tiling for this codec class", got=name, fix="encode smaller batches untiled")
    # Tile and overlap must be whole latent cells: diffusers rounds them down, and tiles would lie beside their place.
    step = round(spec.space_factor(vae) / TILE_OVERLAP)
    if tiling is True:
        return math.ceil(spec.tile_size(vae) / step) * step
    if tiling < 1 or tiling % step:
        nearest = max(step, round(tiling / step) * step)
        raise Refused(
            "the codec cannot tile like that", where=name, got=f"tiles of {tiling} pixels",
            expected=f"a multiple of {step}", fix=f"the nearest is {nearest}",
        )  # fmt: skip
    return tiling
