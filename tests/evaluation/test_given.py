"""Given frames: PSNR of what is given alone, and attributes kept all through a clip."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.errors import Refused
from mmdit.evaluation.given import attributes_of, compare_given, given_figures, given_psnr, shown


class ByBrightness:
    """Reads "light" or "dark" by the mean of a clip, and "motion" always right."""

    config = SimpleNamespace(names={"colour": ("light", "dark"), "motion": ("walks",)}, motion=("motion",))

    def read(self, clips: Tensor) -> dict[str, list[str]]:
        light = clips.float().flatten(1).mean(1) > 127
        return {"colour": ["light" if value else "dark" for value in light], "motion": ["walks"] * len(clips)}


PROBE: Any = ByBrightness()
ROWS = [{"colour": "light", "motion": "walks"}] * 2


def clips_of(*levels: list[int]) -> Tensor:
    """One clip a list, uint8 (b, 3, frame, 2, 2), each frame of one level."""
    return torch.tensor(levels, dtype=torch.uint8).view(len(levels), 1, -1, 1, 1).expand(-1, 3, -1, 2, 2).contiguous()


def test_shown_as_a_whole_and_in_every_third() -> None:
    steady, fading = [200] * 9, [255] * 6 + [0] * 3  # the whole of the second still reads as light
    seen = shown(PROBE, clips_of(steady, fading), ROWS, ("colour", "motion"))
    assert seen["whole"] == {"colour": [True, True], "motion": [True, True]}
    assert seen["thirds"] == {"colour": [True, False], "motion": [True, True]}


def test_psnr_is_of_the_given_frames_alone() -> None:
    original, other = clips_of([0, 0, 0]), clips_of([0, 255, 10])
    assert given_psnr(original, other, "first") == [float("inf")]
    expected = 20 * torch.log10(torch.tensor(25.5)).item()
    assert given_psnr(original, other, "last") == pytest.approx([expected])
    assert given_psnr(original, other, "both") == pytest.approx([expected + 10 * torch.log10(torch.tensor(2.0)).item()])


def test_figures_of_all_clips() -> None:
    original = clips_of([200] * 9, [200] * 9)
    clips = {
        "original": original,
        "codec": clips_of([198] * 9, [198] * 9),
        "generated": clips_of([198] * 6 + [0] * 3, [190] + [200] * 8),
    }
    figures = given_figures(compare_given(PROBE, clips, ROWS, "first", ("colour",)))
    assert figures["clips"] == 2
    assert figures["within_1_db"] == 0.5  # the second first frame is five times as far off
    assert figures["psnr"]["generated"] < figures["psnr"]["codec"]
    shares = {whose: part["share"] for whose, part in figures["shown"]["thirds"]["colour"].items()}
    assert shares == {"original": 1.0, "codec": 1.0, "generated": 0.5}
    with pytest.raises(Refused):
        given_figures([])


def test_only_attributes_known_of_every_clip_are_asked() -> None:
    assert attributes_of(PROBE, ROWS) == ("colour", "motion")
    assert attributes_of(PROBE, [*ROWS, {"colour": None, "motion": "walks"}]) == ("motion",)
    assert attributes_of(PROBE, [{"caption": "a coat"}]) == ()
