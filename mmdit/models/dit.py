"""DiT: a transformer that denoises image and video latents.

Shapes: B batch, C channels, (F, H, W) latent grid, (f, h, w) token grid, S = h * w tokens a frame, D width.
Source: arXiv 2212.09748 (the image network); 2401.03048 (the alternating layout).
"""

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from mmdit.errors import Refused
from mmdit.models.block import LAYOUTS, Block, BlockConfig, FinalLayer, Positions, zero_linears
from mmdit.models.embeddings import (
    LabelEmbedder,
    PatchEmbedder,
    TextEmbedder,
    TimestepEmbedder,
    Triple,
    rotary_table,
    sincos_1d,
    sincos_2d,
)


class DiT(ModelMixin, ConfigMixin):
    """A Diffusion Transformer for clips; an image is a clip of one frame.

    Args:
        sample_size: latent grid (frames, height, width) it is made for; other grids work at call time.
        patch_size: (time, height, width) of a patch.
        in_channels, out_channels: of the latents; out_channels None means in_channels.
        hidden_size, depth, num_heads, mlp_ratio: the size of the network.
        layout: which attentions each block has: "space", "factorized", "alternating" or "joint".
        num_classes: number of labels; 0 for none. The null label is `num_classes`.
        text_dim: width of the pooled text; 0 for none.
        positions: "sincos" (added, as in the paper) or "rotary" (turns queries and keys).
        norm: "layer" or "rms". mlp: "gelu" or "swiglu". qk_norm: RMS norm on queries and keys.
        attention_backend: "auto", "math", "sdpa" or "xformers".

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
        mlp_ratio: float = 4.0,
        layout: str = "space",
        num_classes: int = 0,
        text_dim: int = 0,
        positions: str = "sincos",
        norm: str = "layer",
        mlp: str = "gelu",
        qk_norm: bool = False,
        attention_backend: str = "auto",
    ) -> None:
        super().__init__()
        _check(layout=layout, positions=positions, norm=norm, mlp=mlp, hidden_size=hidden_size, num_heads=num_heads)
        self.patch_size: Triple = tuple(patch_size)  # type: ignore[assignment]  # a list once it was saved
        self.out_channels = out_channels or in_channels
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, self.patch_size)
        self.t_embedder = TimestepEmbedder(hidden_size)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size) if num_classes else None
        self.text_embedder = TextEmbedder(text_dim, hidden_size) if text_dim else None
        shared = BlockConfig(hidden_size, num_heads, mlp_ratio, mlp, norm, qk_norm, attention_backend)
        parts = LAYOUTS[layout]
        self.blocks = nn.ModuleList(Block(shared, parts[i % len(parts)]) for i in range(depth))
        patch_volume = self.patch_size[0] * self.patch_size[1] * self.patch_size[2]
        self.final_layer = FinalLayer(hidden_size, patch_volume * self.out_channels, norm)
        self._tables: dict[tuple[Triple, torch.device], tuple[Tensor | None, Positions]] = {}
        self.initialize()

    def forward(
        self, latents: Tensor, timesteps: Tensor, *, labels: Tensor | None = None, text: Tensor | None = None
    ) -> Tensor:
        """Latents (B, C, F, H, W) at timesteps (B,) or (B, f) in [0, 1000] -> (B, out_channels, F, H, W).

        labels: ids (B,) in [0, num_classes]. text: pooled (B, text_dim). Each is given exactly when the network has it.
        """
        grid = self.token_grid(latents.shape[2:])
        table, positions = self._positions(grid, latents.device)
        x = self.x_embedder(latents)  # (B, f, S, D)
        if table is not None:
            x = x + table.to(x.dtype)
        condition = self.condition(timesteps, labels, text)  # (B, 1 or f, 1, D)
        for index, block in enumerate(self.blocks):
            if index == 1 and self.config.layout == "alternating" and positions.time_table is not None:
                x = x + positions.time_table[:, None].to(x.dtype)  # right before the first time attention
            x = block(x, condition, positions)
        x = self.final_layer(x, condition)  # (B, f, S, pt*ph*pw*C)
        pt, ph, pw = self.patch_size
        return rearrange(
            x, "b f (h w) (pt ph pw c) -> b c (f pt) (h ph) (w pw)", h=grid[1], w=grid[2], pt=pt, ph=ph, pw=pw
        )

    def condition(self, timesteps: Tensor, labels: Tensor | None, text: Tensor | None) -> Tensor:
        """The sum of all conditions, (B, 1 or f, 1, D): computed once, broadcast over the tokens."""
        for name, embedder, value in (("labels", self.y_embedder, labels), ("text", self.text_embedder, text)):
            if (embedder is None) != (value is None):
                has = "no" if embedder is None else "a"
                raise ValueError(f"this network has {has} {name} input, but {name} {'is' if value is None else 'are'} "
                                 f"{'missing' if value is None else 'given'}")  # fmt: skip
        c = self.t_embedder(timesteps)  # (B, D) or (B, f, D)
        c = c[:, None] if c.ndim == 2 else c
        if self.y_embedder is not None:
            c = c + self.y_embedder(labels)[:, None]
        if self.text_embedder is not None:
            c = c + self.text_embedder(text)[:, None]
        return c[:, :, None]

    def token_grid(self, latent_grid: tuple[int, ...]) -> Triple:
        """(F, H, W) of the latents to (f, h, w) of the tokens; Refused where the patch does not divide it."""
        if any(n < p or n % p for n, p in zip(latent_grid, self.patch_size, strict=True)):
            nearest = tuple(max(p, n // p * p) for n, p in zip(latent_grid, self.patch_size, strict=True))
            raise Refused(
                "the latent grid does not divide into patches",
                got=f"{tuple(latent_grid)} with patches {self.patch_size}",
                expected=f"multiples of the patch, nearest {nearest}",
            )
        f, h, w = (n // p for n, p in zip(latent_grid, self.patch_size, strict=True))
        return f, h, w

    def _positions(self, grid: Triple, device: torch.device) -> tuple[Tensor | None, Positions]:
        if (grid, device) not in self._tables:
            width, head_dim = self.config.hidden_size, self.config.hidden_size // self.config.num_heads
            f, h, w = grid
            if self.config.positions == "rotary":
                space, time, joint = (rotary_table(axes, head_dim).to(device) for axes in ((h, w), (f,), (f, h, w)))
                self._tables[grid, device] = None, Positions(space, time, joint, None)
            else:
                space = sincos_2d(h, w, width)[None]  # (1, S, D)
                time = sincos_1d(torch.arange(f), width).float()  # (f, D)
                if self.config.layout == "joint" and f > 1:
                    space = space + time[:, None]  # (f, S, D)
                self._tables[grid, device] = space.to(device), Positions(None, None, None, time.to(device))
        return self._tables[grid, device]

    def initialize(self) -> None:
        """Sets every weight.

        | what | how it starts |
        |---|---|
        | linear and patch weights, the text MLP | Xavier uniform (a patch as the matrix it is); biases zero |
        | label table and timestep MLP | normal, deviation 0.02 |
        | modulations, and the last linear | zero: each block starts as identity, the network as zero |
        | QK norms | one |
        """
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv3d):
                nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedder in (self.t_embedder, self.y_embedder):
            for name, weight in embedder.named_parameters() if embedder is not None else ():
                if name.endswith("weight"):
                    nn.init.normal_(weight, std=0.02)
        for name, module in self.blocks.named_modules():
            if name.endswith("_modulation"):
                zero_linears(module)
        zero_linears(self.final_layer)


def _check(*, layout: str, positions: str, norm: str, mlp: str, hidden_size: int, num_heads: int) -> None:
    choices = {
        "layout": (layout, tuple(LAYOUTS)),
        "positions": (positions, ("sincos", "rotary")),
        "norm": (norm, ("layer", "rms")),
        "mlp": (mlp, ("gelu", "swiglu")),
    }
    for name, (value, known) in choices.items():
        if value not in known:
            raise Refused(f"unknown {name}", where="the model", got=repr(value), expected=f"one of {', '.join(known)}")
    if hidden_size % (4 * num_heads):
        raise Refused(
            "the width does not divide into heads",
            where="the model",
            got=f"hidden_size {hidden_size} and num_heads {num_heads}",
            expected="a width that is a multiple of 4 x heads",
        )
