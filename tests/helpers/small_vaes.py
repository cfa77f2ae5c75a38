"""A small random model of each codec class, as (class, settings); some classes more than once, set differently."""

from typing import Any

import diffusers
import torch

from mmdit.latents.codec import Codec

LTX = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "down_block_types": ("LTXVideo095DownBlock3D",),
    "downsample_type": ("spatiotemporal",),
    "spatio_temporal_scaling": (True,),
    "layers_per_block": (1, 1),
    "decoder_block_out_channels": (8,),
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_layers_per_block": (1, 1),
    "decoder_inject_noise": (False, False),
    "upsample_residual": (False,),
    "upsample_factor": (1,),
}
IMAGE = {
    "latent_channels": 3,
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
    "shift_factor": 0.3,
    "scaling_factor": 0.7,
}
COG = {
    "latent_channels": 4,
    "block_out_channels": (8, 8, 8, 8),
    "down_block_types": ("CogVideoXDownBlock3D",) * 4,
    "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "scaling_factor": 0.7,
}
WAN = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "latents_mean": [0.1, 0.2, -0.3, 0.4],
    "latents_std": [1.0, 2.0, 3.0, 0.5],
}
DC = {
    "latent_channels": 4,
    "attention_head_dim": 4,
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)),
    "decoder_qkv_multiscales": ((), (5,)),
    "scaling_factor": 0.4,
}

CASES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ltx": (diffusers.AutoencoderKLLTXVideo, LTX),
    "ltx with a decoding time": (
        diffusers.AutoencoderKLLTXVideo,
        LTX | {"timestep_conditioning": True, "scaling_factor": 0.5, "decoder_inject_noise": (True, True)},
    ),
    "ltx that is not causal": (diffusers.AutoencoderKLLTXVideo, LTX | {"encoder_causal": False}),
    "image": (diffusers.AutoencoderKL, IMAGE),
    "image with channel statistics": (
        diffusers.AutoencoderKL,
        IMAGE | {"shift_factor": None, "latents_mean": (0.1, 0.2, 0.3), "latents_std": (1.0, 2.0, 3.0)},
    ),
    "image with a temporal decoder": (
        diffusers.AutoencoderKLTemporalDecoder,
        {
            "latent_channels": 4,
            "block_out_channels": (32, 32),  # its norms have 32 groups
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "scaling_factor": 0.3,
        },
    ),
    "cogvideox": (diffusers.AutoencoderKLCogVideoX, COG),
    "cogvideox of twos": (
        diffusers.AutoencoderKLCogVideoX,
        COG
        | {
            "block_out_channels": (8, 8),
            "down_block_types": ("CogVideoXDownBlock3D",) * 2,
            "up_block_types": ("CogVideoXUpBlock3D",) * 2,
            "temporal_compression_ratio": 2,
        },
    ),
    "wan": (diffusers.AutoencoderKLWan, WAN),
    "wan of twos": (
        diffusers.AutoencoderKLWan,
        WAN | {"temperal_downsample": [False, False, True], "scale_factor_temporal": 2},
    ),
    "wan with patches": (
        diffusers.AutoencoderKLWan,
        WAN
        | {
            "is_residual": True,
            "in_channels": 12,
            "out_channels": 12,
            "patch_size": 2,
            "scale_factor_spatial": 16,
            "decoder_base_dim": 8,
        },
    ),
    "hunyuan": (
        diffusers.AutoencoderKLHunyuanVideo,
        {
            "latent_channels": 4,
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 2,
            "scaling_factor": 0.48,
        },
    ),
    "dc": (diffusers.AutoencoderDC, DC),
}


def build(case: str, *, config: dict[str, Any] | None = None, tiling: bool | int = False) -> Codec:
    """The codec of that case, with changes to its config."""
    kind, settings = CASES[case]
    settings = settings | (config or {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = kind(**settings).eval()
        for name, weight in vae.named_parameters():
            if "per_channel_scale" in name:  # of the decoder's noise, which begins at zero
                torch.nn.init.constant_(weight, 0.1)
        if kind is diffusers.AutoencoderKLLTXVideo:
            vae.latents_mean.copy_(torch.randn(4))
            vae.latents_std.copy_(torch.rand(4) + 0.5)
    return Codec(vae, tiling=tiling)
