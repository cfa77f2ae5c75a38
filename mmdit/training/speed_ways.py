"""What a training step is measured on, and the ways to compute it."""

from dataclasses import dataclass
from typing import Any

from mmdit.models import model_cost
from mmdit.models.presets import preset_options

LABELS = 1000


@dataclass(frozen=True)
class Case:
    """What is trained: a preset in a layout, on `batch` clips of latents of `grid` (frame, height, width)."""

    preset: str
    layout: str
    grid: tuple[int, int, int]
    batch: int

    @property
    def name(self) -> str:
        return f"{self.preset} {self.layout}, {self.batch} x {'x'.join(map(str, self.grid))}"

    @property
    def tokens(self) -> int:
        """Of the batch."""
        patch = preset_options(self.preset)["patch_size"]
        return self.batch * (self.grid[0] // patch[0]) * (self.grid[1] // patch[1]) * (self.grid[2] // patch[2])

    @property
    def flops(self) -> int:
        """Of a step: a multiply-accumulate is two, the backward pass costs twice the forward one."""
        return 3 * 2 * self.batch * model_cost(options(self), self.grid).macs


@dataclass(frozen=True)
class Way:
    """One way to compute the step.

    Args:
        precision: "float32" or "bfloat16" (under autocast, weights in float32).
        peer: blocks of diffusers' class that is trained in place of ours; None for ours.
        plain: which of `mmdit.models.cpu_kernels.KERNELS` are left out.
        fused: whether AdamW is one kernel; else torch's default.
        backend: of attention.
        compiled: "blocks", "whole", or "graphs" (whole, with CUDA graphs where the device has them).
        checkpointing: every so-many-th block is computed again in the backward pass; 0 for none.
        keeps_memory: whether freed memory stays with the process: `mmdit.training.allocator`. It does in training.
        averaged: whether the step keeps a moving average of the weights.
        sharded: weights under FSDP2, in a group of this one process; not of a peer, and not compiled.
    """

    name: str
    precision: str
    peer: int | None = None
    plain: tuple[str, ...] = ()
    fused: bool = True
    backend: str = "auto"
    compiled: str = ""
    checkpointing: int = 0
    keeps_memory: bool = True
    averaged: bool = False
    sharded: bool = False


def options(case: Case) -> dict[str, Any]:
    """Of our network."""
    more = {"sample_size": case.grid, "in_channels": 4, "layout": case.layout, "num_classes": LABELS}
    return {**preset_options(case.preset), **more}
