"""A block: a list of sub-layers, each one modulated by the condition (adaLN-Zero).

Shapes: B batch, f token frames, S tokens a frame, D width, H heads. Tokens are (B, f, S, D) throughout.
The modulation is (B, 1, 1, D), or (B, f, 1, D) where each frame has a timestep of its own.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit.models.attention import attention
from mmdit.models.embeddings import rotate

# What each block of a layout is made of; a layout of two rows alternates between them.
LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "space": (("space", "mlp"),),
    "factorized": (("space", "time", "mlp"),),
    "alternating": (("space", "mlp"), ("time", "mlp")),
    "joint": (("joint", "mlp"),),
}


class Modulation(NamedTuple):
    """What adaLN does to one sub-layer; each (B, 1 or f, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


class Positions(NamedTuple):
    """Rotary tables of the three kinds of attention, and the sin-cos time table (f, D); None where not used."""

    space: Tensor | None
    time: Tensor | None
    joint: Tensor | None
    time_table: Tensor | None


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


class Block(nn.Module):
    """x = x + gate * sublayer(modulate(norm(x))) for each of `parts`."""

    def __init__(self, config: BlockConfig, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.parts = parts
        self.norm = config.norm
        width = config.hidden_size
        self.attn = Attention(config)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else Mlp(config)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        if parts == ("space", "time", "mlp"):
            self.time_attn = Attention(config)
            self.time_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))

    def forward(self, x: Tensor, condition: Tensor, positions: Positions) -> Tensor:
        # x (B, f, S, D), condition (B, 1 or f, 1, D)
        first, mlp = _modulations(self.adaLN_modulation, condition, 2)
        if self.parts[0] == "space":
            x = x + first.gate * self.attn(self._enter(x, first), positions.space)
        elif self.parts[0] == "time":
            x = x + first.gate * _over_time(self.attn, self._enter(x, first), positions.time)
        else:
            x = x + first.gate * _over_space_time(self.attn, self._enter(x, first), positions.joint)
        if "time" in self.parts[1:] and x.shape[1] > 1:  # one frame has no time: a video network is its image network
            (time,) = _modulations(self.time_modulation, condition, 1)
            with_time = x if positions.time_table is None else x + positions.time_table[:, None].to(x.dtype)
            x = x + time.gate * _over_time(self.time_attn, self._enter(with_time, time), positions.time)
        return x + mlp.gate * self.mlp(self._enter(x, mlp))

    def _enter(self, x: Tensor, modulation: Modulation) -> Tensor:
        return normalize(x, self.norm) * (1 + modulation.scale) + modulation.shift


class Attention(nn.Module):
    """Multi-head self-attention over the third axis from the end: (..., N, D) -> (..., N, D)."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.backend = config.attention_backend
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        head_dim = width // config.num_heads
        self.q_scale = nn.Parameter(torch.ones(head_dim)) if config.qk_norm else None
        self.k_scale = nn.Parameter(torch.ones(head_dim)) if config.qk_norm else None

    def forward(self, x: Tensor, rotary: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).unbind(-3)  # each (..., N, H, D/H)
        if self.q_scale is not None and self.k_scale is not None:
            q = normalize(q, "rms") * self.q_scale.to(q.dtype)
            k = normalize(k, "rms") * self.k_scale.to(k.dtype)
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        return self.proj(attention(q, k, v, backend=self.backend).flatten(-2))


class Mlp(nn.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        inner = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = nn.Linear(config.hidden_size, inner)
        self.fc2 = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SwiGLU(nn.Module):
    """(silu(x A) * x B) C, with the inner width cut to 2/3 so that it costs what `Mlp` does. Source: 2002.05202."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        inner = int(config.hidden_size * config.mlp_ratio * 2 / 3 / 8) * 8  # a multiple of 8 suits the kernels
        self.fc1 = nn.Linear(config.hidden_size, 2 * inner)
        self.fc2 = nn.Linear(inner, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class FinalLayer(nn.Module):
    """Tokens (B, f, S, D) to patches (B, f, S, patch volume * channels), with a modulation of its own."""

    def __init__(self, hidden_size: int, outputs: int, norm: str) -> None:
        super().__init__()
        self.norm = norm
        self.linear = nn.Linear(hidden_size, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition).chunk(2, dim=-1)
        return self.linear(normalize(x, self.norm) * (1 + scale) + shift)


def normalize(x: Tensor, norm: str) -> Tensor:
    """Layer or RMS norm over the last axis, eps 1e-6, without weights of its own (the modulation has them)."""
    if norm == "rms":
        return F.rms_norm(x, x.shape[-1:], eps=1e-6)
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _modulations(layer: nn.Module, condition: Tensor, count: int) -> list[Modulation]:
    chunks = layer(condition).chunk(3 * count, dim=-1)
    return [Modulation(*chunks[3 * i : 3 * i + 3]) for i in range(count)]


def _over_time(attn: Attention, x: Tensor, rotary: Tensor | None) -> Tensor:
    return attn(x.transpose(1, 2), rotary).transpose(1, 2)  # (B, S, f, D) inside


def _over_space_time(attn: Attention, x: Tensor, rotary: Tensor | None) -> Tensor:
    return attn(x.flatten(1, 2), rotary).unflatten(1, x.shape[1:3])  # (B, f*S, D) inside


def zero_linears(layer: nn.Module) -> None:
    """adaLN-Zero: the linears of a modulation, and of the last layer, start at zero, so that each starts as nothing."""
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
