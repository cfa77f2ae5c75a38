"""What blocks are made of: attention, MLPs and norms.

Shapes: D width, H heads, N tokens attended over, M tokens of another sequence.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.models.attention import attention
from mmdit.models.cpu_kernels import Linear, gelu
from mmdit.models.positions import rotate


@dataclass(frozen=True)
class BlockConfig:
    """What all blocks of a network share; the options are described in `DiT`."""

    hidden_size: int
    num_heads: int
    mlp_ratio: float
    mlp: str
    norm: str
    qk_norm: bool
    attention_backend: str
    conditioning: str


class Attention(nn.Module):
    """Multi-head self-attention over the third axis from the end: (..., N, D) -> (..., N, D)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.backend = config.attention_backend
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.q_scale, self.k_scale = _head_scales(config)

    def forward(self, x: Tensor, rotary: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # each (..., N, H, D/H)
        q, k = _scaled(q, self.q_scale), _scaled(k, self.k_scale)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return self.proj(attention(q, k, v, mask=mask, backend=self.backend).flatten(-2))


class CrossAttention(nn.Module):
    """Queries from tokens (B..., N, D), keys and values from another sequence (B..., M, D) -> (B..., N, D)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.backend = config.attention_backend
        self.q = Linear(width, width)
        self.kv = Linear(width, 2 * width)
        self.proj = Linear(width, width)
        self.q_scale, self.k_scale = _head_scales(config)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        q = _scaled(self.q(x).unflatten(-1, (self.num_heads, -1)), self.q_scale)  # (..., N, H, D/H)
        k, v = self.kv(tokens).unflatten(-1, (2, self.num_heads, -1)).unbind(-3)  # each (..., M, H, D/H)
        return self.proj(attention(q, _scaled(k, self.k_scale), v, mask=mask, backend=self.backend).flatten(-2))


class Mlp(nn.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        inner = mlp_width(config.hidden_size, config.mlp_ratio, "gelu")
        self.fc1 = Linear(config.hidden_size, inner)
        self.fc2 = Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class SwiGLU(nn.Module):
    """(silu(x A) * x B) C, with the inner width cut to 2/3 so that it costs what `Mlp` does. Source: 2002.05202."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        inner = mlp_width(config.hidden_size, config.mlp_ratio, "swiglu")
        self.fc1 = Linear(config.hidden_size, 2 * inner)
        self.fc2 = Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class Norm(nn.Module):
    """Layer or RMS norm over the last axis with learned weights, for what no modulation enters."""

    def __init__(self, width: int, norm: str) -> None:
        super().__init__()
        self.norm = norm
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        return normalize(x, self.norm, self.weight, self.bias)


def normalize(x: Tensor, norm: str, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    """Layer or RMS norm over the last axis, eps 1e-6; without weights where a modulation follows, which has them."""
    if norm == "rms":
        return F.rms_norm(x, x.shape[-1:], weight, eps=1e-6)
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps=1e-6)


def mlp_width(hidden_size: int, mlp_ratio: float, mlp: str) -> int:
    """The inner width of an MLP; SwiGLU's is a multiple of 8, which suits the kernels."""
    if mlp == "swiglu":
        return max(8, int(hidden_size * mlp_ratio * 2 / 3 / 8) * 8)
    return int(hidden_size * mlp_ratio)


def _head_scales(config: BlockConfig) -> tuple[nn.Parameter | None, nn.Parameter | None]:
    """The weights of the RMS norms on queries and keys, (D/H,) each."""
    if not config.qk_norm:
        return None, None
    head_dim = config.hidden_size // config.num_heads
    return nn.Parameter(torch.ones(head_dim)), nn.Parameter(torch.ones(head_dim))


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else normalize(x, "rms") * scale.to(x.dtype)
