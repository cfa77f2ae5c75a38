"""Which frames of a clip are measured, and at which size."""

import pytest
import torch

from mmdit.errors import Refused
from mmdit.evaluation.view import View


def clip(frames: int = 9, height: int = 8, width: int = 16) -> torch.Tensor:
    """Frames of one level each, 10 times their number; the left half is 5 brighter."""
    levels = (10 * torch.arange(frames)).view(1, -1, 1, 1).expand(3, -1, height, width).clone()
    levels[..., : width // 2] += 5
    return levels.byte()


def numbers(shown: torch.Tensor) -> list[int]:
    return [int(value) // 10 for value in shown[0, :, 0, -1]]


def test_frames_and_stride_from_the_start_on() -> None:
    assert numbers(View(3, 2).cut(clip(), 1)) == [1, 3, 5]
    assert numbers(View(stride=4).cut(clip(), 0)) == [0, 4, 8]
    assert numbers(View().cut(clip(), 0)) == list(range(9))
    assert View(3, 2).shown((9, 8, 16)) == (3, 8, 16)


def test_the_start_is_drawn_among_all_that_fit() -> None:
    view = View(3, 2)
    assert view.start(9, None, "here") == 0
    assert {view.start(9, drawn, "here") for drawn in range(100)} == {0, 1, 2, 3, 4}
    assert {view.start(5, drawn, "here") for drawn in range(100)} == {0}
    with pytest.raises(Refused, match="clips too short, in here, got 4 frames, expected at least 5"):
        view.start(4, None, "here")


def test_size_by_cutting_at_the_centre_or_by_squashing() -> None:
    cut = View(size=(4, 4)).cut(clip(), 0)
    assert cut.shape == (3, 9, 4, 4) and cut.dtype == torch.uint8
    assert cut[0, 0, 0, 0] == 5 and cut[0, 0, 0, 3] == 0  # both halves are still there
    wide = clip(height=4)
    wide[..., 0] = 255
    assert torch.equal(View(size=(4, 4)).cut(wide, 0), wide[..., 6:10])  # the edges are cut off
    assert View(size=(4, 4), crop="none").cut(wide, 0)[0, 0, 0, 0] > 50


def test_clips_of_unlike_sizes_are_refused_unless_they_are_brought_to_one() -> None:
    sizes = [(9, 8, 16), (5, 8, 16), (9, 8, 8)]
    with pytest.raises(Refused, match="clips of unlike sizes"):
        View().common_size(sizes, "here")
    assert View(5, size=(4, 4)).common_size(sizes, "here") == (5, 4, 4)
