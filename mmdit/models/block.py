"""A block: a list of sub-layers, and the ways in which a condition enters them.

Shapes: B batch, f token frames, S tokens a frame, M text tokens, D width. Tokens are (B, f, S, D) throughout. What is
told to all tokens of a sample is (B, 1, 1, D), or (B, f, 1, D) where each frame has a timestep of its own.
Sources: arXiv 2212.09748 (adaLN-Zero, adaLN, cross-attention, in-context); 2310.00426 (shared adaLN, "adaLN-single").
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmdit.models.positions import Positions
from mmdit.models.sublayers import Attention, BlockConfig, CrossAttention, Mlp, Norm, SwiGLU, normalize
from mmdit.models.told import Told

# What each block of a layout is made of; a layout of two rows alternates between them.
LAYOUTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "space": (("space", "mlp"),),
    "factorized": (("space", "time", "mlp"),),
    "alternating": (("space", "mlp"), ("time", "mlp")),
    "joint": (("joint", "mlp"),),
}

# How the condition enters, and into how many vectors of width D a modulated sub-layer turns it: shift, scale and gate.
CONDITIONINGS = {"adaln-zero": 3, "adaln": 2, "shared-adaln": 3, "cross-attention": 0, "in-context": 0}


class Modulation(NamedTuple):
    """What adaLN does to one sub-layer; each (B, 1 or f, 1, D)."""

    shift: Tensor
    scale: Tensor
    gate: Tensor | None = None


class Block(nn.Module):
    """x = x + gate * sublayer(modulate(norm(x))) for each of `parts`; without modulation, the norm has weights."""

    def __init__(self, config: BlockConfig, parts: tuple[str, ...]) -> None:
        super().__init__()
        self.parts = parts
        self.norm = config.norm
        self.chunks = CONDITIONINGS[config.conditioning]
        self.has_second_time = "time" in parts[1:]
        width = config.hidden_size
        self.attn = Attention(config)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else Mlp(config)
        if config.conditioning in ("adaln-zero", "adaln"):
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * self.chunks * width))
        if self.has_second_time:
            self.time_attn = Attention(config)
            if config.conditioning in ("adaln-zero", "adaln"):
                self.time_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, self.chunks * width))
        self.modulation_table: nn.Parameter | None = None
        if config.conditioning == "shared-adaln":
            self.modulation_table = nn.Parameter(torch.zeros((2 + self.has_second_time) * self.chunks, width))
        if not self.chunks:
            self.attn_norm, self.mlp_norm = Norm(width, config.norm), Norm(width, config.norm)
            self.time_norm = Norm(width, config.norm) if self.has_second_time else None
        if "cross" in parts:
            self.cross_attn, self.cross_norm = CrossAttention(config), Norm(width, config.norm)

    def forward(self, x: Tensor, told: Told, positions: Positions) -> Tensor:
        # x (B, f, S, D); one frame has no time, so that a video network is its image network there
        has_time = self.has_second_time and x.shape[1] > 1
        attn, mlp, time = self._modulations(told.vector, has_time)
        y = self._enter(x, attn, "attn_norm")
        x = _leave(x, _attend(self.attn, self.parts[0], y, told, positions), attn)
        if has_time:
            with_time = x if positions.added_over_time is None else x + positions.added_over_time.to(x.dtype)
            y = self._enter(with_time, time, "time_norm")
            x = _leave(x, _attend(self.time_attn, "time", y, told, positions), time)
        if "cross" in self.parts and told.tokens is not None:
            x = x + _attend_to_told(self.cross_attn, self.cross_norm(x), told.tokens, told.mask)
        return _leave(x, self.mlp(self._enter(x, mlp, "mlp_norm")), mlp)

    def _modulations(self, vector: Tensor | None, has_time: bool) -> tuple[Modulation | None, ...]:
        """Of the first attention, the MLP and the second time attention; None where the norms have weights instead.

        One product a block: it takes as long as reading its weights does, and one for all blocks reads as many.
        """
        if vector is None:
            return None, None, None
        if self.modulation_table is not None:
            rows = list((vector + self.modulation_table.flatten()).chunk(len(self.modulation_table), dim=-1))
        else:
            rows = list(self.adaLN_modulation[1](vector).chunk(2 * self.chunks, dim=-1))
            rows += self.time_modulation[1](vector).chunk(self.chunks, dim=-1) if has_time else ()
        n = self.chunks
        time = Modulation(*rows[2 * n : 3 * n]) if has_time else None
        return Modulation(*rows[:n]), Modulation(*rows[n : 2 * n]), time

    def _enter(self, x: Tensor, modulation: Modulation | None, norm: str) -> Tensor:
        if modulation is None:
            return getattr(self, norm)(x)
        return modulate(normalize(x, self.norm), modulation)


class FinalLayer(nn.Module):
    """Tokens (B, f, S, D) to patches (B, f, S, patch volume * channels), with a modulation or a norm of its own."""

    def __init__(self, config: BlockConfig, outputs: int) -> None:
        super().__init__()
        width = config.hidden_size
        self.norm = config.norm
        self.linear = nn.Linear(width, outputs)
        self.modulation_table = nn.Parameter(torch.zeros(2, width)) if config.conditioning == "shared-adaln" else None
        if config.conditioning in ("adaln-zero", "adaln"):
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        if not CONDITIONINGS[config.conditioning]:
            self.out_norm = Norm(width, config.norm)

    def forward(self, x: Tensor, condition: Tensor | None) -> Tensor:
        # condition (B, 1 or f, 1, D): after silu, but for shared adaLN
        if condition is None:
            return self.linear(self.out_norm(x))
        if self.modulation_table is not None:
            shift, scale = (condition + row for row in self.modulation_table)
        else:
            shift, scale = self.adaLN_modulation[1](condition).chunk(2, dim=-1)
        return self.linear(modulate(normalize(x, self.norm), Modulation(shift, scale)))


def modulate(x: Tensor, modulation: Modulation) -> Tensor:
    """x * (1 + scale) + shift."""
    return torch.addcmul(modulation.shift, x, 1 + modulation.scale)


def _leave(x: Tensor, y: Tensor, modulation: Modulation | None) -> Tensor:
    """x + gate * y, or x + y where there is no gate."""
    if modulation is None or modulation.gate is None:
        return x + y
    return torch.addcmul(x, modulation.gate, y)


def _attend(attn: Attention, part: str, x: Tensor, told: Told, positions: Positions) -> Tensor:
    """Self-attention among the tokens of a frame, of a place, or of the clip."""
    if part == "space":
        return attn(x, positions.space, told.space_mask)
    if part == "time":
        return attn(x.transpose(1, 2), positions.time).transpose(1, 2)  # (B, S, f, D) inside
    mask = told.space_mask.expand(-1, x.shape[1], -1).flatten(1) if told.space_mask is not None else None  # (B, f*S)
    return attn(x.flatten(1, 2), positions.joint, mask).unflatten(1, x.shape[1:3])  # (B, f*S, D) inside


def _attend_to_told(attn: CrossAttention, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Cross-attention; where all frames are told the same, they are one sequence."""
    if tokens.shape[1] == x.shape[1]:
        return attn(x, tokens, mask)  # (B, f, S, D) and (B, f, M, D)
    return attn(x.flatten(1, 2)[:, None], tokens, mask).unflatten(2, x.shape[1:3])[:, 0]  # (B, 1, f*S, D) inside
