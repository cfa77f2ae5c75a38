"""Long clips: how windows lie, what they hand on, and that none but one is in memory."""

from typing import Any

import pytest
import torch
from small_vaes import CASES, build
from torch import Tensor

from mmdit.diffusion.given import Given
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.pipelines.windows import Windows, decode, make_windows, plan_overlap, plan_windows


@pytest.fixture(scope="module", params=CASES)
def codec(request: pytest.FixtureRequest) -> Codec:
    return build(str(request.param))


def plan(codec: Codec, frames: int, trained: int, patch: int = 1, **options: Any) -> Windows:
    size = (frames, 2 * codec.space_factor, 2 * codec.space_factor)
    settings: dict[str, Any] = {"window": None, "overlap": None, "kinds": ["prefix"], **options}
    return plan_windows(codec, patch, frames, codec.latent_size(size), trained, **settings)


def count_frames(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The latent frames of each call of the decoder."""
    counts, plain = list[int](), Codec.decode

    def counting(self: Codec, latents: Tensor) -> Tensor:
        counts.append(latents.shape[2])
        return plain(self, latents)

    monkeypatch.setattr(Codec, "decode", counting)
    return counts


def test_windows_cover_the_clip_and_each_begins_as_a_clip_of_the_codec(codec: Codec) -> None:
    trained, frames = 1 + 3 * codec.frame_step, 1 + 20 * codec.frame_step
    windows = plan(codec, frames, trained)
    new = windows.length - windows.shared
    assert windows.length == trained
    assert trained + (windows.count - 2) * new < frames <= trained + (windows.count - 1) * new
    assert 0 < windows.overlap < windows.grid[0]
    space = codec.space_factor
    assert codec.latent_size((windows.shared, space, space))[0] == windows.overlap
    assert plan(codec, trained, trained) == Windows(trained, trained, plan(codec, trained, trained).grid)


def test_the_end_of_each_window_is_the_beginning_of_the_next(codec: Codec) -> None:
    """What is drawn is noise; the codec alone decides what a window is given."""
    windows = plan(codec, 1 + 5 * codec.frame_step, 1 + 3 * codec.frame_step)
    seen: list[tuple[Tensor, Given | None]] = []

    def draw(number: int, given: Given | None) -> Tensor:
        random = torch.Generator().manual_seed(number)
        latents = torch.randn(2, codec.channels, *windows.grid, generator=random) / 2
        if given is not None:
            latents = torch.where(given.mask[:, None, :, None, None], given.latents, latents)
        seen.append((latents, given))
        return latents

    made = make_windows(codec, windows, None, draw, latents=False)
    assert made.shape[2] == windows.frames
    assert len(seen) == windows.count > 1
    before, clip = seen[0][0], codec.decode(seen[0][0])
    torch.testing.assert_close(made[:, :, : windows.length], clip, atol=1e-4, rtol=0)
    given = seen[1][1]
    assert given is not None
    assert given.mask.sum(1).tolist() == [windows.overlap] * 2
    if codec.time_factor == 1:
        wanted = before[:, :, -windows.overlap :]
    else:
        wanted = codec.encode(clip[:, :, -windows.shared :]).mean
    torch.testing.assert_close(given.latents[:, :, : windows.overlap], wanted, atol=1e-3, rtol=1e-3)
    after = codec.decode(seen[1][0])[:, :, windows.shared :]
    begin = windows.length
    room = min(after.shape[2], windows.frames - begin)
    torch.testing.assert_close(made[:, :, begin : begin + room], after[:, :, :room], atol=1e-4, rtol=0)


def test_no_more_than_a_window_is_decoded_at_a_time(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = count_frames(monkeypatch)
    windows = plan(codec, 1 + 6 * codec.frame_step, 1 + 2 * codec.frame_step)
    make_windows(codec, windows, None, lambda number, given: torch.zeros(1, codec.channels, *windows.grid), False)
    assert counts == [windows.grid[0]] * windows.count


def test_what_decodes_frame_by_frame_is_decoded_in_parts(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    count = codec.latent_size((1 + 4 * codec.frame_step, codec.space_factor, codec.space_factor))[0]
    latents = torch.randn(2, codec.channels, count, 2, 2, generator=torch.Generator().manual_seed(0))
    whole = codec.decode(latents)
    counts = count_frames(monkeypatch)
    torch.testing.assert_close(decode(codec, latents, 2), whole, atol=1e-4, rtol=0)
    assert counts == ([2, 2, 1] if codec.spec.decodes_per_frame else [count])


def test_latents_of_windows_follow_each_other() -> None:
    codec = build("image")
    windows = plan(codec, 7, 3)
    drawn = torch.arange(7.0).view(1, 1, 7, 1, 1).expand(1, 3, 7, 2, 2)
    new = windows.length - windows.shared
    made = make_windows(
        codec, windows, None, lambda number, given: drawn[:, :, number * new : number * new + 3], latents=True
    )
    assert torch.equal(made, drawn)


def test_without_the_training_for_it_a_long_clip_is_made_at_once() -> None:
    codec = build("image")
    for kinds in ([], ["last"]):
        assert plan(codec, 9, 3, kinds=kinds).count == 1
        with pytest.raises(Refused, match="was not trained to go on"):
            plan(codec, 9, 3, kinds=kinds, window=3)
    assert plan(codec, 9, 3, kinds=None, window=3).count > 1
    assert plan(codec, 9, 1).count == 1  # a network of images


def test_only_first_frames_known_only_one_patch_is_handed_on() -> None:
    codec = build("image")
    assert plan(codec, 40, 12).overlap == 4
    assert plan(codec, 40, 12, overlap=5).overlap == 5
    assert plan(codec, 40, 12, patch=2, overlap=5).overlap == 4
    assert plan(codec, 40, 12, kinds=["first"]).overlap == 1
    assert plan(codec, 40, 12, kinds=["first"], patch=2).overlap == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 0}, "length of a window"),
        ({"window": True}, "length of a window"),
        ({"overlap": 0}, "overlap"),
        ({"overlap": 1.5}, "overlap"),
        ({"window": 3, "patch": 2}, "patches"),
        ({"window": 1}, "no beginning"),
    ],
)
def test_windows_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        plan(build("image"), 8, 4, **options)
    with pytest.raises(Refused, match="no beginning"):
        plan_overlap(build("wan"), 1, 9, 1, 3)
