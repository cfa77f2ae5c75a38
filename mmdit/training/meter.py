"""How fast a run goes, between two lines of its log."""

import math
import resource
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from mmdit.models import model_cost

# Keys of metrics.jsonl that depend on the machine and its moment; all others repeat bit for bit.
TIMED = (
    "seconds", "clips_per_s", "tokens_per_s", "model_flops_per_s", "peak_share", "data_wait_share", "memory_bytes",
)  # fmt: skip


class StepSize:
    """Tokens and operations of a training step on latents (batch, channel, frame, height, width).

    Backward costs twice the forward, and a multiply-accumulate is two; a text encoder that is trained along is not
    counted.

    Args:
        network: configuration of the DiT.
        text_tokens: of each clip, for a network that takes them.
    """

    def __init__(self, network: Any, text_tokens: int = 0) -> None:
        self._network, self._text_tokens = dict(network), text_tokens
        self._known: dict[tuple[int, ...], tuple[int, int]] = {}

    def __call__(self, latents: Sequence[int]) -> tuple[int, int]:
        clips, _, frames, height, width = latents
        grid = frames, height, width
        if grid not in self._known:
            tokens = math.prod(size // patch for size, patch in zip(grid, self._network["patch_size"], strict=True))
            cost = model_cost(self._network, grid, text_tokens=self._text_tokens)
            self._known[grid] = tokens, 3 * 2 * cost.macs
        tokens, flops = self._known[grid]
        return clips * tokens, clips * flops


class Meter:
    """Counts what this process trained on and how long that took; `line` says it of all processes together.

    Args:
        network: configuration of the DiT.
        peak: operations a second of one process's device, or None.
        clock: seconds.
        text_tokens: of each clip, for a network that takes them.
    """

    def __init__(self, network: Any, peak: float | None, clock: Callable[[], float], text_tokens: int = 0) -> None:
        self._peak, self._clock = peak, clock
        self.size_of = StepSize(network, text_tokens)
        self._reset()

    def _reset(self) -> None:
        self._clips = self._tokens = self._done = 0
        self._seconds = self._waited = 0.0

    def begin(self) -> None:
        """A step begins: its batch is waited for."""
        self._began = self._clock()

    def got_batch(self) -> None:
        """The batch is there."""
        self._waited += self._clock() - self._began

    def end(self, latents: torch.Size) -> None:
        """The step is done, on latents (batch, channel, frame, height, width) of this process."""
        self._seconds += self._clock() - self._began
        tokens, flops = self.size_of(latents)
        self._clips += latents[0]
        self._tokens += tokens
        self._done += flops

    def line(self, accelerator: Accelerator) -> dict[str, float]:
        """The figures since the last line; called on every process. Validation and checkpoints are left out.

        `clips_per_s`, `tokens_per_s`, `model_flops_per_s`: of all processes together. `peak_share`: of what their
        devices could do, where that is known. `data_wait_share`: of the steps' time, in which the main process waited
        for its batch. `memory_bytes`: most that the main process ever held, on its device, or in all on a CPU.
        """
        mine = torch.tensor([self._clips, self._tokens], device=accelerator.device)
        clips, tokens = accelerator.reduce(mine).tolist()
        # float32: some devices have nothing longer.
        flops = accelerator.reduce(torch.tensor(float(self._done), device=accelerator.device)).item()
        seconds = max(self._seconds, 1e-9)
        figures = {
            "clips_per_s": round(clips / seconds, 3),
            "tokens_per_s": round(tokens / seconds, 1),
            "model_flops_per_s": float(round(flops / seconds)),
            "data_wait_share": round(self._waited / seconds, 4),
            "memory_bytes": memory_held(accelerator.device),
        }
        if self._peak is not None:
            figures["peak_share"] = round(flops / seconds / (self._peak * accelerator.num_processes), 4)
        self._reset()
        return figures


def memory_held(device: torch.device) -> int:
    """Most bytes so far: of tensors on a CUDA device, else of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
