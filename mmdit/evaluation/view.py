"""What of each clip is measured: which frames, at which size."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mmdit.errors import Refused

Size = tuple[int, int, int]  # frames, height, width


@dataclass(frozen=True)
class View:
    """`frames` frames, each the `stride`-th after the one before, at `size` (height, width); None: all, as they are.

    crop: "centre" (scaled until it covers the size, the rest cut off) or "none" (scaled to it, its shape lost).
    """

    frames: int | None = None
    stride: int = 1
    size: tuple[int, int] | None = None
    crop: str = "centre"

    def span(self, available: int) -> int:
        """Frames of the source from the first to the last that is shown."""
        shown = self.frames if self.frames is not None else (available - 1) // self.stride + 1
        return (shown - 1) * self.stride + 1

    def start(self, available: int, drawn: int | None, where: object) -> int:
        """The first frame that is shown, of so many: the one that the number `drawn` says, or 0.

        Raises Refused where there are too few.
        """
        room = available - self.span(available)
        if room < 0:
            raise Refused("clips too short", where=where, got=f"{available} frames",
                          expected=f"at least {self.span(available)}", fix="say frames=N or stride=N")  # fmt: skip
        return 0 if drawn is None else drawn % (room + 1)

    def shown(self, size: Size) -> Size:
        """(frames, height, width) of what is shown of a clip of this size."""
        return (self.span(size[0]) - 1) // self.stride + 1, *(self.size or size[1:])

    def common_size(self, sizes: Sequence[Size], where: object) -> Size:
        """`shown` of all clips; Refused where they come out unlike."""
        unlike = sorted({self.shown(size) for size in sizes})
        if len(unlike) != 1:
            raise Refused(
                "clips of unlike sizes", where=where, expected="one size",
                got=" and ".join(f"{f} frames of {h}x{w}" for f, h, w in unlike[:2]), fix="say frames=N size=[H,W]",
            )  # fmt: skip
        return unlike[0]

    def cut(self, clip: Tensor, start: int) -> Tensor:
        """A clip, uint8 (3, frame, height, width), as it is measured, from frame `start` on."""
        frames = clip[:, start : start + self.span(clip.shape[1] - start) : self.stride]
        if self.size is None or self.size == frames.shape[-2:]:
            return frames
        h, w = frames.shape[-2:]
        scale = max(self.size[0] / h, self.size[1] / w)
        cover = self.size if self.crop == "none" else (
            max(self.size[0], round(h * scale)), max(self.size[1], round(w * scale))
        )  # fmt: skip
        scaled = F.interpolate(frames.transpose(0, 1).float(), cover, mode="bicubic", antialias=True)
        top, left = (cover[0] - self.size[0]) // 2, (cover[1] - self.size[1]) // 2
        scaled = scaled[..., top : top + self.size[0], left : left + self.size[1]]
        return scaled.clamp(0, 255).round().byte().transpose(0, 1)
