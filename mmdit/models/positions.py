"""Where a token is: sin-cos tables that are added, rotary tables that turn queries and keys.

Both are made from the coordinates of the tokens, so that any grid works at call time.
Shapes: (f, h, w) token grid, S = h * w tokens a frame, N tokens, D width, d head size.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Triple = tuple[int, int, int]

# Grids whose tables are kept; training in buckets of sizes needs a few.
GRIDS_KEPT = 64


class Positions(NamedTuple):
    """The tables of one token grid, float32; None where the network does not use them."""

    added: Tensor | None = None
    """Sin-cos, added to all tokens as they enter: (1 or f, S, D)."""
    added_over_time: Tensor | None = None
    """Sin-cos, added right before the first time attention: (f, 1, D)."""
    space: Tensor | None = None
    """Rotary, for space attention: (S, d/2, 2)."""
    time: Tensor | None = None
    """Rotary, for time attention: (f, d/2, 2)."""
    joint: Tensor | None = None
    """Rotary, for space-time attention: (f * S, d/2, 2)."""

    def beside(self, count: int, frames: int) -> "Positions":
        """The same where `count` tokens without a place come before those of each frame: they are not turned."""
        if count == 0 or self.space is None or self.joint is None:
            return self
        joint = _with_unturned(self.joint.unflatten(0, (frames, -1)), count).flatten(0, 1)
        return self._replace(space=_with_unturned(self.space, count), joint=joint)


class PositionMaker:
    """Makes the tables of any token grid, and keeps those of the last few grids.

    Args:
        kind: "sincos" or "rotary".
        joint: whether the time goes into the table that enters first.
        trained: the token grid that coordinates are scaled to, or None for coordinates 0, 1, 2, ...
    """

    def __init__(self, kind: str, width: int, head_dim: int, joint: bool, trained: tuple[float, ...] | None) -> None:
        self.kind = kind
        self.width = width
        self.head_dim = head_dim
        self.joint = joint
        self.trained = trained
        self._kept: dict[tuple[Triple, torch.device], Positions] = {}

    def __call__(self, grid: Triple, device: torch.device) -> Positions:
        """The tables of a token grid (f, h, w), on `device`."""
        if torch.compiler.is_compiling():  # part of the graph, so that one graph serves any grid
            return self._make(grid, device)
        if (grid, device) not in self._kept:
            if len(self._kept) >= GRIDS_KEPT:
                self._kept.clear()
            with torch.inference_mode(False):  # training may use tables that sampling made
                self._kept[grid, device] = self._make(grid, device)
        return self._kept[grid, device]

    def _make(self, grid: Triple, device: torch.device) -> Positions:
        on = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        f, h, w = (self._coordinates(grid, axis, on) for axis in range(3))
        if self.kind == "rotary":
            space, time, joint = (rotary_table(axes, self.head_dim) for axes in ((h, w), (f,), (f, h, w)))
            return Positions(space=space.to(device), time=time.to(device), joint=joint.to(device))
        added, over_time = sincos_2d(h, w, self.width)[None], sincos_1d(f, self.width).float()[:, None]
        if self.joint and grid[0] > 1:  # one frame has no time
            added = added + over_time  # (f, S, D)
        return Positions(added=added.to(device), added_over_time=over_time.to(device))

    def _coordinates(self, grid: Triple, axis: int, device: torch.device) -> Tensor:
        """0, 1, 2, ... along an axis, or scaled so that they span what the trained grid spans; (n,) float64."""
        count = torch.arange(grid[axis], dtype=torch.float64, device=device)
        return count if self.trained is None else count * (self.trained[axis] / grid[axis])


def sincos_1d(positions: Tensor, dim: int) -> Tensor:
    """[sin(p w_i), cos(p w_i)] with w_i = 10000^(-i / (dim / 2)); (N,) -> (N, dim), float64."""
    steps = torch.arange(dim // 2, dtype=torch.float64, device=positions.device)
    angles = positions[:, None] * 10_000.0 ** (-steps / (dim / 2))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_2d(rows: Tensor, columns: Tensor, dim: int) -> Tensor:
    """The table of the DiT paper, (h * w, dim) float32: the first half codes the column, the second the row."""
    row, column = torch.meshgrid(rows, columns, indexing="ij")
    return torch.cat([sincos_1d(column.flatten(), dim // 2), sincos_1d(row.flatten(), dim // 2)], dim=-1).float()


def rotary_table(axes: tuple[Tensor, ...], head_dim: int, theta: float = 100.0) -> Tensor:
    """Rotary angles of each token of a grid as (N, head_dim / 2, 2) [cos, sin], float32; each axis gets an even share.

    `axes` are the coordinates along each axis of the grid. The base is 100, not 10,000 as for text: latent grids are
    short, and slower waves would stand still on them. Pairs left over where head_dim / 2 does not divide by the number
    of axes are not turned. Source: 2104.09864.
    """
    pairs = head_dim // 2 // len(axes)
    frequencies = theta ** (-torch.arange(pairs, dtype=torch.float64, device=axes[0].device) / pairs)
    places = torch.meshgrid(*axes, indexing="ij")
    angles = torch.cat([place.flatten()[:, None] * frequencies for place in places], dim=-1)  # (N, axes * pairs)
    angles = F.pad(angles, (0, head_dim // 2 - angles.shape[1]))
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turns the halves of each head as pairs: x (..., N, H, D), table (N, D / 2, 2)."""
    cos, sin = table[:, None, :, 0].to(x.dtype), table[:, None, :, 1].to(x.dtype)  # (N, 1, D/2)
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def _with_unturned(table: Tensor, count: int) -> Tensor:
    """(..., N, d/2, 2) to (..., count + N, d/2, 2), the first `count` with the angle 0."""
    still = torch.tensor([1.0, 0.0], device=table.device).expand(*table.shape[:-3], count, table.shape[-2], 2)
    return torch.cat([still, table], dim=-3)
