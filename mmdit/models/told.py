"""From the conditions of a sample to what the blocks are told: a vector, or tokens to attend to.

Shapes: B batch, f token frames, S tokens a frame, n vectors, M text tokens, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Told(NamedTuple):
    """What the blocks are told; None where the network has no such input."""

    vector: Tensor | None = None
    """The condition, (B, 1 or f, 1, D): silu of the sum; for shared adaLN the modulation that its blocks share."""
    tokens: Tensor | None = None
    """For cross-attention: (B, 1 or f, n + M, D)."""
    mask: Tensor | None = None
    """Which of `tokens` are there: (B, 1, n + M) bool, or None for all."""
    space_mask: Tensor | None = None
    """Which tokens of a frame are there, where text stands beside them: (B, 1, n + M + S) bool, or None for all."""


def tell(
    x: Tensor, vectors: Sequence[Tensor], tokens: Tensor | None, mask: Tensor | None, *, by: str, tokens_by: str
) -> tuple[Tensor, Told]:
    """Sorts the conditions by the way in which they enter.

    Args:
        x: tokens of the clip (B, f, S, D).
        vectors: conditions that are one vector each, (B, 1 or f, D). tokens: those of the text, (B, 1, M, D).
        mask: which of `tokens` are there, (B, M) bool; None for all.
        by, tokens_by: `conditioning` and `text_tokens_by` of the network.

    Returns:
        x with what is in context before the tokens of each frame, (B, f, n + M + S, D), and what the blocks are told;
        its vector is the plain sum for shared adaLN, silu of the sum for the other two of its kind.
    """
    sequences: dict[str, list[tuple[Tensor, Tensor | None]]] = {"cross-attention": [], "in-context": []}
    told = Told()
    if by in sequences:
        sequences[by].append((_as_tokens(vectors), None))
    else:
        condition = sum(vectors[1:], vectors[0])[:, :, None]  # (B, 1 or f, 1, D): broadcast over the tokens
        told = Told(condition if by == "shared-adaln" else F.silu(condition))  # once, not in each block
    if tokens is not None:
        if mask is not None:  # so that a prompt of nothing but padding is the same at any length
            tokens = tokens.masked_fill(~mask[:, None, :, None], 0)
        sequences[tokens_by].append((tokens, mask))
    if sequences["cross-attention"]:
        crossed, there = _join(*sequences["cross-attention"])
        told = told._replace(tokens=crossed, mask=there)
    if sequences["in-context"]:
        x, there = _join(*sequences["in-context"], (x, None))
        told = told._replace(space_mask=there)
    return x, told


def _as_tokens(vectors: Sequence[Tensor]) -> Tensor:
    """Vectors (B, 1 or f, D) each, as a sequence (B, 1 or f, n, D)."""
    frames = max(vector.shape[1] for vector in vectors)
    return torch.stack([vector.expand(-1, frames, -1) for vector in vectors], dim=2)


def _join(*sequences: tuple[Tensor, Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Sequences of tokens (B, 1 or f, N, D), each with its mask (B, N) or None, one behind the other.

    Returns:
        The tokens (B, 1 or f, N, D) and their mask (B, 1, N), or None where no sequence has one.
    """
    frames = max(tokens.shape[1] for tokens, _ in sequences)
    joined = torch.cat([tokens.expand(-1, frames, -1, -1) for tokens, _ in sequences], dim=2)
    if all(mask is None for _, mask in sequences):
        return joined, None
    all_there = torch.ones(joined.shape[0], joined.shape[2], dtype=torch.bool, device=joined.device)
    masks = [all_there[:, : tokens.shape[2]] if mask is None else mask for tokens, mask in sequences]
    return joined, torch.cat(masks, dim=1)[:, None]
