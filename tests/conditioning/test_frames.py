"""Which frames are given."""

import pytest
import torch

from mmdit.conditioning.frames import GIVEN, draw_kind, given_mask, kinds_of
from mmdit.errors import Refused


def masks(kind: str, frames: int, *, patch: int = 1) -> set[str]:
    random = torch.Generator().manual_seed(0)
    drawn = [given_mask(kind, frames, random, patch=patch) for _ in range(60)]
    return {"".join("x" if given else "." for given in mask) for mask in drawn}


def test_each_kind_gives_what_it_says() -> None:
    assert masks("first", 5) == {"x...."}
    assert masks("last", 5) == {"....x"}
    assert masks("both", 5) == {"x...x"}
    assert masks("prefix", 5) == {"x....", "xx...", "xxx..", "xxxx."}
    assert masks("every-nth", 5) == {"x.x.x", "x..x.", "x...x", "x...."}
    assert given_mask(None, 3, torch.Generator()).tolist() == [False] * 3


@pytest.mark.parametrize("kind", GIVEN)
def test_some_frame_is_always_left_to_make(kind: str) -> None:
    for frames in range(1, 7):
        assert all("." in mask for mask in masks(kind, frames))
    assert masks(kind, 1) == {"."}


def test_frames_of_a_patch_are_given_together() -> None:
    assert masks("both", 6, patch=2) == {"xx..xx"}


def test_the_kinds_of_a_mask_are_those_that_draw_it() -> None:
    for patch in (1, 2):
        drawn = {kind: masks(kind, 5 * patch, patch=patch) for kind in GIVEN}
        for number in range(2 ** (5 * patch)):
            text = "".join(".x"[number >> place & 1] for place in range(5 * patch))
            wanted = [kind for kind in GIVEN if text in drawn[kind]]
            assert kinds_of(torch.tensor([letter == "x" for letter in text]), patch=patch) == wanted, text


def test_shares_decide_how_often() -> None:
    shares = {"first": 0.5, "both": 0.25}
    assert [draw_kind(shares, at) for at in (0.0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [
        "first", "first", "both", "both", None, None,
    ]  # fmt: skip


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(Refused, match="unknown kind of given frames, got middle, expected first or last"):
        given_mask("middle", 4, torch.Generator())
