"""What is seen in the made clips."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from mmdit.clips.film import LOOK
from mmdit.clips.made import COLOURS, GARMENTS, MOTIONS, MadeClip, plan_clips, render
from mmdit.clips.palette import PALETTE
from mmdit.clips.video import write_clip

Frames = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def clip(seed: int = 0, **attributes: str) -> MadeClip:
    """One clip with the given attributes, the rest by the seed."""
    return replace(plan_clips(seed + 1, 11)[seed], **attributes)  # type: ignore[arg-type]


def figure(wanted: MadeClip, size: tuple[int, int] = (64, 48), frames: int = 9) -> Mask:
    """Two seconds in `frames` frames: where the figure is seen, which is what changes when all of its colours do."""
    wanted = replace(wanted, pattern="plain")  # the outline is that of any pattern
    look = dict(zip(LOOK, wanted.look, strict=True))
    changes = {name: (look[name] + 0.5) % 1.0 for name in ("skin", "hair", "shoe")}
    light = look["neutral"] >= (1 / 2 if wanted.colour == "black" else 2 / 3)  # the lightest of the neutral colours
    changes["neutral"] = 0.1 if light else 0.9
    worn = "black" if wanted.colour != "black" else "pink"
    other = replace(wanted, colour=worn, look=tuple((look | changes).values()))
    pictures = [render(one, size, frames, (frames - 1) / 2).astype(int) for one in (wanted, other)]
    return np.asarray(np.abs(pictures[0] - pictures[1]).max(-1) > 24)


def cloth(wanted: MadeClip, frames: int = 17) -> Mask:
    """Two seconds in `frames` frames: where the garment's own colour is seen, (frame, height, width)."""
    other = replace(wanted, colour={"black": "yellow", "pink": "blue"}.get(wanted.colour, "black"))
    pictures = [render(one, frames=frames, fps=(frames - 1) / 2).astype(int) for one in (wanted, other)]
    return np.asarray(np.abs(pictures[0] - pictures[1]).max(-1) > 60)


def middle(mask: Mask) -> NDArray[np.float64]:
    """The mean column of the mask in each frame."""
    columns = np.arange(mask.shape[2])
    return np.asarray([(one.sum(0) * columns).sum() / one.sum() for one in mask])


@pytest.mark.parametrize("size", [(64, 48), (64, 64), (128, 96), (48, 96), (96, 32), (32, 32)])
def test_the_whole_figure_is_seen(size: tuple[int, int]) -> None:
    height, width = size
    tall = min(0.83, 1.25 * width / height) * height  # the least height of a figure
    for at, motion in enumerate(MOTIONS):
        for number in (3 * at, 3 * at + 1):
            mask = figure(clip(number, motion=motion, garment=GARMENTS[number % 5]), size, 5)
            assert not mask[:, 0].any()
            assert not mask[:, -1].any()
            assert mask[:, :, 0].sum() + mask[:, :, -1].sum() <= 0.01 * mask.sum()
            rows = np.asarray(mask.any(2))
            heights = rows.shape[1] - rows[:, ::-1].argmax(1) - rows.argmax(1)
            assert heights[-1] > 0.85 * tall
            if motion == "steps toward the camera":
                assert heights[-1] > 1.25 * heights[0]
            else:
                assert (heights > 0.85 * tall).all()


def parts(mask: Mask) -> list[int]:
    """The sizes of the pieces that a mask (height, width) falls into, largest first."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    sizes = []
    while left:
        edge, size = [left.pop()], 1
        while edge:
            y, x = edge.pop()
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            edge += near
            size += len(near)
        sizes.append(size)
    return sorted(sizes, reverse=True)


def test_one_figure_in_one_piece() -> None:
    for at in range(15):
        garment = [one for one in GARMENTS if one != "coat"][at % 4]  # the shirt in its collar has no other colour
        for picture in figure(clip(at, motion=MOTIONS[at % 5], garment=garment), (128, 96), 3):
            assert sum(parts(picture)[1:]) < 0.03 * picture.sum()


def test_motions_are_what_they_are_called() -> None:
    for at in range(4):
        for direction, motion in ((-1, "walks left"), (1, "walks right")):
            steps = np.diff(middle(figure(clip(at, motion=motion)))) * direction
            assert steps.sum() > 0.22 * 48  # across the picture
            assert (steps > -0.5).all()  # and never back; the arms and legs move the middle a little
        across = middle(figure(clip(at, motion="stands and sways"))[:, :36])
        assert 6.0 < np.ptp(across) < 10
        feet = middle(figure(clip(at, motion="stands and sways"))[:, 56:])
        assert np.ptp(feet) < 1.5


def test_turning_round_shows_back_and_sides() -> None:
    for at in range(4):
        one = clip(at, motion="turns round", garment="t-shirt and trousers")
        broad = cloth(one)[:, 16:26].any(1).sum(1)
        assert broad[3:7].min() < 0.80 * broad[0]  # from the side
        assert broad[7:10].max() > 0.90 * broad[0]  # from behind
        assert abs(int(broad[-1]) - int(broad[0])) <= 2
        # the face: skin changes with the figure's skin, hair does not
        look = dict(zip(LOOK, one.look, strict=True))
        other = replace(one, look=tuple((look | {"skin": (look["skin"] + 0.5) % 1.0}).values()))
        skin = np.abs(render(one).astype(int) - render(other)).max(-1) > 20
        face = skin[:, :14].sum((1, 2))
        assert face[8] < 0.45 * face[0]


def test_clips_move_smoothly() -> None:
    for at in range(5):
        pictures = render(clip(at, motion=MOTIONS[at])).astype(int)
        change = np.abs(np.diff(pictures, axis=0)).mean((1, 2, 3))
        assert change.min() > 0.15  # never still
        assert change.max() < 4.5 * np.median(change)  # and without a jump


def decoded(path: Path) -> Frames:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def chroma(colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """Colours without their brightness: the direction of red, green and blue; black stays near the middle."""
    return colours / np.maximum(colours.max(-1, keepdims=True), 70.0)


def test_colours_are_told_apart_in_every_frame_of_the_file(tmp_path: Path) -> None:
    names = np.asarray(list(PALETTE))
    known = chroma(np.asarray([PALETTE[name][0] for name in names], float))
    apart = np.abs(known[:, None] - known[None]).sum(-1) + 9 * np.eye(len(names))
    assert apart.min() > 0.5
    for at, colour in enumerate(COLOURS):
        one = clip(at, colour=colour, pattern="plain", garment=GARMENTS[at % 5])
        write_clip(tmp_path / f"{at}.mp4", render(one, frames=9, fps=4), 4)
        pictures, mask = decoded(tmp_path / f"{at}.mp4"), cloth(one, 9)
        for picture, where in zip(pictures, mask, strict=True):
            mean = chroma(np.median(picture[where].astype(float), 0))
            assert names[np.abs(known - mean).sum(1).argmin()] == colour


def printed(one: MadeClip) -> NDArray[np.float64]:
    """How much of each row of the garment its pattern covers, away from the sleeves, for the rows of three frames."""
    pictures = [render(it, frames=3, fps=1).astype(float).mean(-1) for it in (one, replace(one, pattern="plain"))]
    mask, change = cloth(replace(one, pattern="plain"), 3), np.abs(pictures[0] - pictures[1]) > 40
    axis, rows = middle(mask), []
    for at in range(3):
        near = mask[at] & (np.abs(np.arange(mask.shape[2]) - axis[at]) < 4)
        rows += [change[at, y][near[y]].mean() for y in np.flatnonzero(near.sum(1) > 5)]
    return np.asarray(rows)


@pytest.mark.parametrize("garment", GARMENTS)
def test_patterns_are_what_they_are_called(garment: str) -> None:
    for at, colour in enumerate(COLOURS[::3]):
        one = clip(at, garment=garment, colour=colour, motion="stands and sways")
        stripes, dots = (printed(replace(one, pattern=pattern)) for pattern in ("stripes", "dots"))
        assert 0.40 < stripes.mean() < 0.60
        assert stripes.std() > 0.37  # rows are within a stripe, or between two
        assert 0.22 < dots.mean() < 0.42
        assert dots.std() < 0.33
        assert dots.max() < 0.9  # no row is all dot


def test_any_resolution_shows_the_same() -> None:
    for at in range(0, 15, 3):
        one = clip(at)
        small = render(one, (64, 48), 5, 2).astype(float)
        large = render(one, (128, 96), 5, 2).astype(float).reshape(5, 64, 2, 48, 2, 3).mean((2, 4))
        assert np.abs(small - large).mean() < 3.0


def test_a_single_frame_and_other_rates() -> None:
    for at in range(5):
        assert render(clip(at, motion=MOTIONS[at]), frames=1).shape == (1, 64, 48, 3)
    fast, slow = (
        render(clip(2, motion="walks left"), frames=33, fps=16),
        render(clip(2, motion="walks left"), frames=17),
    )
    assert np.abs(fast[::2].astype(int) - slow).max() <= 2  # the same two seconds


def test_the_same_seed_is_the_same_picture() -> None:
    one = clip(7)
    assert np.array_equal(render(one), render(one))
    assert not np.array_equal(render(one), render(clip(8, **one.attributes)))
