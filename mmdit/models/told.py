"""From the conditions of a sample to what the blocks are told: a vector, or tokens to attend to.

Shapes: B batch, f token frames, S tokens a frame, n vectors, M text tokens, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Told(NamedTuple):
    """What the blocks are told; None where the network has no such input."""

    vector: Tensor | None = None
    """silu(condition) (B, 1 or f, 1, D); for shared adaLN what its one linear made of it, (B, 1 or f, 1, 6D or 9D)."""
    tokens: Tensor | None = None
    """For cross-attention: (B, 1 or f, n + M, D)."""
    mask: Tensor | None = None
    """Which of `tokens` are there: (B, 1, n + M) bool, or None for all."""
    space_mask: Tensor | None = None
    """Which tokens of a frame are there, where text stands beside them: (B, 1, n + M + S) bool, or None for all."""


def as_tokens(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors (B, 1 or f, D) each, as a sequence (B, 1 or f, n, D)."""
    frames = max(vector.shape[1] for vector in vectors)
    return torch.stack([vector.expand(-1, frames, -1) for vector in vectors], dim=2)


def join(*sequences: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Sequences of tokens (B, 1 or f, N, D), each with its mask (B, N) or None, one behind the other.

    Returns:
        The tokens (B, 1 or f, N, D) and their mask (B, 1, N), or None where no sequence has one.
    """
    frames = max(tokens.shape[1] for tokens, _ in sequences)
    joined = torch.cat([tokens.expand(-1, frames, -1, -1) for tokens, _ in sequences], dim=2)
    if all(mask is None for _, mask in sequences):
        return joined, None
    masks = [
        mask if mask is not None else torch.ones(tokens.shape[0], tokens.shape[2], dtype=torch.bool, device=joined.device)
        for tokens, mask in sequences
    ]
    return joined, torch.cat(masks, dim=1)[:, None]
