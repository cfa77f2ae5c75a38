"""UNet: the convolutional network that a DiT is compared with, behind the same call; diffusers' U-Net of clips inside.

Each level has 2D convolutions in space and convolutions along time; all but the finest have attention in space, in time
and to the conditions too. A single frame passes by the same layers, the ones along time seeing nothing beside it.

Shapes: B batch, C channels, (F, H, W) latent grid, (f, h, w) grid of patches, n conditions, D their width.
Sources: arXiv 1505.04597 (U-Net), 2112.10752 (conditions by cross-attention), 2308.06571 (the layers along time).
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mmdit.errors import Refused
from mmdit.models.checks import check_given, check_latents
from mmdit.models.embeddings import LabelEmbedder, TextEmbedder
from mmdit.models.positions import Triple

WIDTHS = (1, 2, 4)  # of the levels, in hidden sizes


class UNet(ModelMixin, ConfigMixin):
    """A U-Net for clips; an image is a clip of one frame. Grids that do not halve evenly are padded by a place.

    Args:
        sample_size: latent grid (frames, height, width) it is made for; other grids work at call time.
        patch_size: (time, height, width) of the patches whose places are stacked as channels first; (1, 1, 1) for none.
        in_channels, out_channels: of the latents; None means in_channels, twice as many predict a variance as well.
        hidden_size: channels of the finest level.
        depth: residual blocks of each level on the way down; there is one more on the way up.
        num_heads: of each attention.
        num_classes: number of labels; 0 for none. The null label is `num_classes`.
        text_dim: width of the pooled text; 0 for none.
        widths: channels of each level, finest first, as multiples of hidden_size.

    Raises:
        Refused: an impossible configuration.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: Triple,
        patch_size: Triple,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        out_channels: int | None = None,
        num_classes: int = 0,
        text_dim: int = 0,
        widths: tuple[int, ...] = WIDTHS,
    ) -> None:
        from diffusers import UNet3DConditionModel

        super().__init__()
        _check_config(self.config)
        self.patch_size: Triple = tuple(patch_size)  # type: ignore[assignment]  # a list once it was saved
        self.out_channels = out_channels or in_channels
        self.width = 4 * hidden_size  # of the conditions: as wide as diffusers makes the timestep's
        self.y_embedder = LabelEmbedder(num_classes, self.width) if num_classes else None
        self.text_embedder = TextEmbedder(text_dim, self.width) if text_dim else None
        coarser = len(widths) - 1
        self.unet = UNet3DConditionModel(
            in_channels=in_channels * math.prod(self.patch_size),
            out_channels=self.out_channels * math.prod(self.patch_size),
            block_out_channels=tuple(hidden_size * width for width in widths),
            down_block_types=("DownBlock3D", *["CrossAttnDownBlock3D"] * coarser),
            up_block_types=(*["CrossAttnUpBlock3D"] * coarser, "UpBlock3D"),
            layers_per_block=depth,
            norm_num_groups=math.gcd(hidden_size, 32),
            cross_attention_dim=self.width,
            attention_head_dim=num_heads,  # diffusers takes the number of heads by this name
        )
        for module in self.unet.modules():
            if isinstance(module, nn.Dropout):  # those along time have 0.1, which torch's own generator would draw
                module.p = 0.0
        nn.init.zeros_(self.unet.conv_out.weight)  # the network starts as zero, as a DiT does
        nn.init.zeros_(self.unet.conv_out.bias)

    def forward(
        self, latents: Tensor, timesteps: Tensor, *, labels: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Latents (B, C, F, H, W) at timesteps (B,) in [0, 1000] -> (B, out_channels, F, H, W).

        Args:
            labels: ids (B,) in [0, num_classes].
            text: pooled, (B, text_dim).

        Raises:
            Refused: a grid that does not divide into patches, an input too many or too few, or a timestep a frame.
        """
        check_latents(latents, self.config.in_channels, self.patch_size)
        check_given(self, labels=labels, text=text, text_tokens=None, text_mask=None, scalars=None)
        if timesteps.shape != latents.shape[:1]:
            got = f"shape {tuple(timesteps.shape)}"
            raise Refused("a U-Net has one timestep a clip", got=got, expected=f"({len(latents)},)")
        pt, ph, pw = self.patch_size
        x = rearrange(latents, "b c (f pt) (h ph) (w pw) -> b (c pt ph pw) f h w", pt=pt, ph=ph, pw=pw)
        said = []
        if self.y_embedder is not None:
            said.append(self.y_embedder(labels))
        if self.text_embedder is not None:
            said.append(self.text_embedder(text))
        # Without conditions, what is attended to is zero and adds nothing.
        told = torch.stack(said, dim=1) if said else x.new_zeros(len(x), 1, self.width)  # (B, n, D)
        x = self.unet(x, timesteps, told, return_dict=False)[0]  # (B, C*pt*ph*pw, f, h, w)
        return rearrange(x, "b (c pt ph pw) f h w -> b c (f pt) (h ph) (w pw)", pt=pt, ph=ph, pw=pw)


def _check_config(config: Mapping[str, Any]) -> None:
    for name in ("in_channels", "hidden_size", "depth", "num_heads"):
        if config[name] < 1:
            raise Refused(f"{name} is too small", where="the model", got=config[name], expected="at least 1")
    if config["hidden_size"] % config["num_heads"]:
        raise Refused(
            "the width does not divide into heads",
            where="the model",
            got=f"hidden_size {config['hidden_size']} and num_heads {config['num_heads']}",
            expected="a width that is a multiple of the heads",
        )


def unet_cost(config: Mapping[str, Any], latent_grid: tuple[int, ...] | None = None) -> tuple[int, int]:
    """(trained parameters, multiply-accumulates of one sample's forward pass) of the network `UNet(**config)`.

    torch counts them on tensors without data: products, convolutions and attention.

    Args:
        latent_grid: (frames, height, width) of what enters; None for the configuration's `sample_size`.
    """
    known = {name: value for name, value in config.items() if not name.startswith("_")}
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in known.items()}
    return _cost(tuple(sorted(options.items())), tuple(latent_grid or config["sample_size"]))


@lru_cache(maxsize=64)
def _cost(options: tuple[tuple[str, Any], ...], grid: tuple[int, ...]) -> tuple[int, int]:
    config = dict(options)
    with torch.device("meta"), torch.no_grad(), torch.autocast("cpu", enabled=False):
        network = UNet(**config)
        given = {}
        if config.get("num_classes"):
            given["labels"] = torch.zeros(1, dtype=torch.long)
        if config.get("text_dim"):
            given["text"] = torch.zeros(1, config["text_dim"])
        with FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, config["in_channels"], *grid), torch.zeros(1), **given)
    return sum(weight.numel() for weight in network.parameters()), counter.get_total_flops() // 2
