"""What enters the blocks: patches, timesteps, labels, text, scalars.

Shapes: B batch, C channels, (F, H, W) latent grid, (f, h, w) token grid, S = h * w tokens a frame, D width.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from mmdit.models.positions import Triple


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
    """Numbers to vectors: sinusoidal features, then a two-layer MLP. For timesteps in [0, 1000], and for scalars."""

    def __init__(self, hidden_size: int, features: int = 256, spacing: int = 128) -> None:
        super().__init__()
        self.features = features
        self.spacing = spacing
        self.mlp = nn.Sequential(nn.Linear(features, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, timesteps: Tensor) -> Tensor:
        features = timestep_features(timesteps, self.features, self.spacing)
        return self.mlp(features.to(next(self.mlp.parameters()).dtype))  # (..., D)


def timestep_features(timesteps: Tensor, features: int, spacing: int = 128) -> Tensor:
    """[cos(t w_i), sin(t w_i)] with w_i = 10000^(-i / spacing); float32, (...,) -> (..., features)."""
    half = features // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=timesteps.device) / spacing)
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
    """Text (..., text_dim), of whatever scale its encoder has, to vectors (..., D): pooled, or token by token."""

    def __init__(self, text_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(text_dim, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, text: Tensor) -> Tensor:
        text = text.to(next(self.mlp.parameters()).dtype)
        return self.mlp(F.layer_norm(text, text.shape[-1:]))
