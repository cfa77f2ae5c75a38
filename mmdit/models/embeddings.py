"""What enters the blocks: patches, timesteps, labels, text, positions.

Shapes: B batch, C channels, (F, H, W) latent grid, (f, h, w) token grid, S = h * w tokens a frame, D width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

Triple = tuple[int, int, int]


class PatchEmbedder(nn.Module):
    """Latents (B, C, F, H, W) to tokens (B, f, S, D): one linear map of each patch."""

    def __init__(self, in_channels: int, hidden_size: int, patch_size: Triple) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_channels, hidden_size, patch_size, patch_size)  # holds the weight as checkpoints do

    def forward(self, latents: Tensor) -> Tensor:
        pt, ph, pw = self.patch_size
        patches = rearrange(
            latents, "b c (f pt) (h ph) (w pw) -> b f (h w) (c pt ph pw)", pt=pt, ph=ph, pw=pw
        )  # (B, f, S, C*pt*ph*pw)
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)  # a product is quicker than the conv


class TimestepEmbedder(nn.Module):
    """Timesteps in [0, 1000] to vectors: sinusoidal features, then a two-layer MLP."""

    def __init__(self, hidden_size: int, features: int = 256) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: Tensor) -> Tensor:
        features = timestep_features(timesteps, self.features)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))  # (..., D)


def timestep_features(timesteps: Tensor, features: int) -> Tensor:
    """[cos(t w_i), sin(t w_i)] with w_i = 10000^(-i / (features / 2)); float32, (...,) -> (..., features)."""
    half = features // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=timesteps.device) / half)
    angles = timesteps.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class LabelEmbedder(nn.Module):
    """Label ids in [0, num_classes] to vectors; the last row, num_classes, is the null label."""

    def __init__(self, num_classes: int, hidden_size: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, hidden_size)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)  # (B,) -> (B, D)


class TextEmbedder(nn.Module):
    """Pooled text (B, text_dim), of whatever scale its encoder has, to vectors (B, D)."""

    def __init__(self, text_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(text_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, text: Tensor) -> Tensor:
        text = text.to(next(self.mlp.parameters()).dtype)
        return self.mlp(F.layer_norm(text, text.shape[-1:]))


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """[sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (dim / 2)); (N,) -> (N, dim), float64 inside."""
    frequencies = 10_000.0 ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.double()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_2d(height: int, width: int, dim: int) -> Tensor:
    """The table of the DiT paper, (h * w, dim) float32: the first half codes the column, the second the row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    table = torch.cat([sincos_1d(columns.flatten(), dim // 2), sincos_1d(rows.flatten(), dim // 2)], dim=-1)
    return table.float()


def rotary_table(grid: tuple[int, ...], head_dim: int, theta: float = 100.0) -> Tensor:
    """Rotary angles of each token of a grid as (N, head_dim / 2, 2) [cos, sin], float32; each axis gets an even share.

    The base is 100, not 10,000 as for text: latent grids are short, and slower waves would stand still on them.
    Pairs left over where head_dim / 2 does not divide by the number of axes are not turned. Source: 2104.09864.
    """
    pairs = head_dim // 2 // len(grid)
    frequencies = theta ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    axes = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = torch.cat([axis.flatten()[:, None] * frequencies for axis in axes], dim=-1)  # (N, axes * pairs)
    angles = F.pad(angles, (0, head_dim // 2 - angles.shape[1]))
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns the halves of each head as pairs: x (..., N, H, D), table (N, D / 2, 2)."""
    cos, sin = table[:, None, :, 0].to(x.dtype), table[:, None, :, 1].to(x.dtype)  # (N, 1, D/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
