"""Clips longer than those of the training: made in windows, each of which is given the end of the one before.

A window is a clip of its own, as long as those of the training. Of a codec that takes frames one by one, the next
window is given latent frames as they are. Of one that takes several frames together, a clip's first latent frame is of
another kind than its others, so that the end of a window is decoded and encoded again, as the beginning of a clip.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit.diffusion.given import Given
from mmdit.errors import Refused
from mmdit.latents.codec import Codec


@dataclass(frozen=True)
class Windows:
    """How a clip of `frames` frames is made.

    Attributes:
        frames: of the whole clip. length: of a window.
        grid: the latent grid (F, H, W) of a window.
        overlap, shared: latent frames that a window is given of the one before, and the frames that these are.
    """

    frames: int
    length: int
    grid: tuple[int, int, int]
    overlap: int = 0
    shared: int = 0

    @property
    def count(self) -> int:
        """Number of windows; the last one may reach past the end of the clip."""
        if self.frames <= self.length:
            return 1
        return 1 + -(-(self.frames - self.length) // (self.length - self.shared))


def plan_windows(
    codec: Codec,
    patch: int,
    frames: int,
    grid: tuple[int, int, int],
    trained: int,
    *,
    window: int | None,
    overlap: int | None,
    kinds: Sequence[str] | None,
) -> Windows:
    """In which windows a clip of `frames` frames, of the latent grid `grid`, is made.

    Args:
        trained: frames of the training clips.
        window: frames of a window; None for `trained` where the network knows how to go on, else for all of them.
        overlap: the most latent frames that one shows the next; None for a third.
        kinds: of given frames that the network was trained with; None for any.

    Raises:
        Refused: windows that the codec cannot make, that do not overlap, or that the network was not trained for.
    """
    _check_options(window, overlap)
    goes_on = kinds is None or "prefix" in kinds or "first" in kinds
    length = frames if window is None and not goes_on else window or trained
    if length >= frames:
        return Windows(frames, frames, grid)
    if not goes_on:
        raise Refused(
            "this model was not trained to go on with a clip", got=f"{frames} frames in windows of {length}",
            fix="train with conditions.given_frames of first or prefix, or insist with force_given (--force-given)",
        )  # fmt: skip
    size = (length, grid[1] * codec.space_factor, grid[2] * codec.space_factor)
    count = codec.latent_size(size)[0]
    if count % patch:
        raise Refused("windows that do not divide into patches", got=f"{count} latent frames", expected=f"{patch}k")
    wanted = overlap or default_overlap(count, patch)
    if kinds is not None and "prefix" not in kinds:
        wanted = patch
    if window is None and count < 2 * patch:
        return Windows(frames, frames, grid)  # trained on images
    shown, shared = plan_overlap(codec, patch, length, count, wanted)
    return Windows(frames, length, (count, *grid[1:]), shown, shared)


def default_overlap(latent_frames: int, patch: int) -> int:
    """Latent frames that a window of so many shows the next: a third of them, or one patch."""
    return max(patch, latent_frames // 3)


def _check_options(window: int | None, overlap: int | None) -> None:
    for name, value in (("length of a window", window), ("overlap", overlap)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise Refused(f"the {name} is out of range", got=repr(value), expected="a whole number of 1 or more")


def plan_overlap(codec: Codec, patch: int, length: int, latent_frames: int, wanted: int) -> tuple[int, int]:
    """(latent frames, frames) of the longest beginning of a clip of `length` frames, up to `wanted` latent frames.

    It ends between two patches, and encodes as a clip of its own.

    Raises:
        Refused: no such beginning leaves something to make.
    """
    most = min(wanted, latent_frames - patch)
    for count in range(most // patch * patch, 0, -patch):
        frames = codec.clip_frames(count)
        height = width = codec.space_factor
        whole = codec.latent_size((frames, height, width))[0] == count
        if whole and (length - frames) % codec.frame_step == 0:
            return count, frames
    raise Refused(
        "no beginning of such a clip can be given", got=f"up to {wanted} of {latent_frames} latent frames",
        expected=f"whole patches of {patch}, and fewer than all", fix="make longer clips, or let more overlap",
    )  # fmt: skip


def make_windows(
    codec: Codec, windows: Windows, first: Given | None, draw: Callable[[int, Given | None], Tensor], latents: bool
) -> Tensor:
    """A batch of clips (B, 3, frame, height, width) in [-1, 1], or their latents, float32 on the CPU.

    Never more than a window is decoded at a time.

    Args:
        first: what the first window is given.
        draw: the number of a window, and what it is given, to its latents (B, C, F, H, W).
        latents: no decoding; for codecs that take frames one by one, or for one window.
    """
    given, made = first, torch.empty(0)
    for number in range(windows.count):
        drawn = draw(number, given)
        last = number == windows.count - 1
        clip = drawn if latents else decode(codec, drawn, windows.length)
        new = clip[:, :, windows.shared if number else 0 :]  # what was shared is there already, coded once less
        begin = number * (windows.length - windows.shared) + clip.shape[2] - new.shape[2]
        if number == 0:
            whole = windows.grid[0] if latents and last else windows.frames
            made = torch.empty(*clip.shape[:2], whole, *clip.shape[3:])
        made[:, :, begin : begin + new.shape[2]] = new[:, :, : made.shape[2] - begin].float().cpu()
        if not last:
            given = _carried(codec, windows, drawn, clip)
        del drawn, clip, new  # the memory is the next window's
    return made


def _carried(codec: Codec, windows: Windows, drawn: Tensor, clip: Tensor) -> Given:
    """The end of a window, as the beginning of the next."""
    if codec.time_factor == 1:
        end = drawn[:, :, -windows.overlap :]
    else:
        # one by one: what a clip is given does not depend on the clips beside it
        end = torch.cat([codec.encode(one).mean for one in clip[:, :, -windows.shared :].split(1)])
    latents = torch.zeros_like(drawn)
    latents[:, :, : windows.overlap] = end
    mask = torch.zeros(len(drawn), drawn.shape[2], dtype=torch.bool, device=drawn.device)
    mask[:, : windows.overlap] = True
    return Given(mask, latents)


def decode(codec: Codec, latents: Tensor, at_once: int) -> Tensor:
    """Latents to clips on the CPU; where the codec decodes frame by frame, up to `at_once` frames at a time."""
    if not codec.spec.decodes_per_frame:
        return codec.decode(latents)
    return torch.cat([codec.decode(part).cpu() for part in latents.split(max(1, at_once), dim=2)], dim=2)
