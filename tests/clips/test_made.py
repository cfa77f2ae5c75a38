"""What the made clips promise: their division, the same folder from the same settings, and what is seen in them."""

import csv
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from mmdit.clips import made
from mmdit.clips.captions import CHOICES, DOING, PLACE, TEMPLATES, WORN, caption
from mmdit.clips.film import LOOK
from mmdit.clips.made import COLOURS, GARMENTS, MOTIONS, PATTERNS, MadeClip, make_clips, plan_clips, prompts, render
from mmdit.clips.palette import PALETTE
from mmdit.clips.video import write_clip
from mmdit.errors import Refused, Stopped

AXES = ("garment", "colour", "pattern", "motion", "background")
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


# --- the plan ---


def test_held_out_triples_share_no_pair() -> None:
    for seed in range(30):
        held = made.held_out_triples(seed)
        assert len(set(held)) == 20  # a tenth of 5 x 8 x 5
        for one, other in combinations(held, 2):
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 2
        assert set(Counter(garment for garment, _, _ in held).values()) == {4}
        assert set(Counter(motion for _, _, motion in held).values()) == {4}
    assert made.held_out_triples(0) != made.held_out_triples(1)


@pytest.mark.parametrize(("count", "seed"), [(216, 0), (216, 5), (1500, 1)])
def test_splits(count: int, seed: int) -> None:
    clips = plan_clips(count, seed)
    held = set(made.held_out_triples(seed))
    for one in clips:
        assert ((one.garment, one.colour, one.motion) in held) == (one.split == "held_out")
    train = [one for one in clips if one.split == "train"]
    for a, b in combinations(("garment", "colour", "motion"), 2):
        pairs = {(getattr(one, a), getattr(one, b)) for one in train}
        assert len(pairs) == len({x for x, _ in pairs}) * len({y for _, y in pairs})
    sizes = Counter(one.split for one in clips)
    assert sizes["held_out"] == sizes["validation"] == count // 12
    for axis, values in zip(AXES, (5, 8, 3, 5, 5), strict=True):
        numbers = Counter(getattr(one, axis) for one in train)
        assert len(numbers) == values
        assert max(numbers.values()) < 1.45 * min(numbers.values())


def test_every_pair_of_all_five_attributes_is_trained() -> None:
    train = [one for one in plan_clips(1500, 1) if one.split == "train"]
    for a, b in combinations(AXES, 2):
        pairs = {(getattr(one, a), getattr(one, b)) for one in train}
        assert len(pairs) == len({x for x, _ in pairs}) * len({y for _, y in pairs})
    triples = {(one.garment, one.colour, one.pattern) for one in train}
    assert len(triples) == len(GARMENTS) * len(COLOURS) * len(PATTERNS)


def test_a_clip_does_not_depend_on_the_count() -> None:
    assert plan_clips(40, 3) == plan_clips(100, 3)[:40]
    assert plan_clips(40, 3) != plan_clips(40, 4)
    assert len({one.look for one in plan_clips(500, 3)}) == 500


def test_every_attribute_is_read_from_every_caption() -> None:
    words: set[str] = set()
    seen = set()
    for template in range(len(TEMPLATES)):
        for one in plan_clips(120, template):
            choices = [(template + 0.5) / len(TEMPLATES), *one.look[: CHOICES - 1]]
            text = caption(one.attributes, choices)
            words |= set(re.findall(r"[a-z-]+", text))
            assert [c for c in COLOURS if re.search(rf"\b{c}\b", text)] == [one.colour]
            found = [p for p, forms in (("plain", "plain|without"), ("stripes", "strip"), ("dots", "dot"))
                     if re.search(forms, text)]  # fmt: skip
            assert found == [one.pattern]
            turned = text.replace("top and skirt", "skirt and top")
            assert [g for g in GARMENTS if g in turned] == [one.garment]
            assert [m for m, forms in DOING.items() if any(form in text for form in forms)] == [one.motion]
            assert [b for b, form in PLACE.items() if form in text] in ([], [one.background])
            seen.add(text)
    assert len(words) < 120
    assert len(seen) > 1000
    assert len(TEMPLATES) >= 10
    assert all(len(forms) >= 2 for forms in (*WORN.values(), *DOING.values()))


def test_held_out_captions_bring_no_new_word() -> None:
    clips = plan_clips(1500, 2)
    words: dict[str, set[str]] = {split: set() for split in made.SPLITS}
    for one in clips:
        words[one.split] |= set(one.caption.split())
    assert words["held_out"] <= words["train"]
    assert words["validation"] <= words["train"]


def test_prompts() -> None:
    held = set(made.held_out_triples(1))
    for split in made.SPLITS:
        asked = prompts(split, 64, 1)
        assert len(asked) == 64
        assert asked[:10] == prompts(split, 10, 1)
        for one in asked:
            assert set(one) == {*AXES, "caption"}
            assert ((one["garment"], one["colour"], one["motion"]) in held) == (split == "held_out")
    with pytest.raises(Refused, match="split"):
        prompts("test", 4, 1)


# --- the folder ---


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "whole"
    make_clips(folder, 12, 3, (32, 32), 5, 8)
    return folder


def test_folder(whole: Path) -> None:
    rows = list(csv.DictReader((whole / "captions.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["path"] for row in rows] == [f"clips/{at:06d}.mp4" for at in range(12)]
    assert tuple(rows[0]) == ("path", "caption", "label", "split", *AXES)
    for row, one in zip(rows, plan_clips(12, 3), strict=True):
        assert row == one.row()
        assert row["label"] == row["garment"] == one.garment
        assert row["caption"] == one.caption
        with av.open(str(whole / row["path"])) as container:
            assert container.streams.video[0].average_rate == 8
            pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        assert pictures.shape == (5, 32, 32, 3)
        assert np.abs(pictures.astype(int) - render(one, (32, 32), 5)).mean() < 6
    assert {row["split"] for row in rows} == set(made.SPLITS)
    assert not [name for name in contents(whole) if ".part-" in name]


def test_workers_change_nothing(whole: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_clips(tmp_path / "two", 12, 3, (32, 32), 5, 8.0, workers=2, progress=lambda *at: seen.append(at))
    assert contents(tmp_path / "two") == contents(whole)
    assert seen == [(done, 12) for done in range(13)]


def test_what_is_missing_is_made_and_the_rest_is_kept(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    make_clips(folder, 12, 3, (32, 32), 5, 8)
    kept = (folder / "clips/000002.mp4").stat().st_mtime_ns
    (folder / "captions.csv").unlink()
    (folder / "clips/000004.mp4").unlink()
    (folder / "clips/000007.mp4").write_bytes(b"")  # as a power failure leaves it
    (folder / "clips/.part-1-000009.mp4").write_bytes(b"half")
    seen: list[int] = []
    make_clips(folder, 12, 3, (32, 32), 5, 8, progress=lambda done, count: seen.append(done))
    assert seen == [10, 11, 12]
    assert contents(folder) == contents(whole)
    assert (folder / "clips/000002.mp4").stat().st_mtime_ns == kept


@pytest.mark.parametrize("fault", ["made.json:written", "clips/000005.mp4:written",
                                   "clips/000005.mp4:renamed", "captions.csv:written"])  # fmt: skip
def test_killed_and_started_again(whole: Path, tmp_path: Path, fault: str) -> None:
    folder = tmp_path / "killed"
    code = f"from mmdit.clips.made import make_clips; make_clips({str(folder)!r}, 12, 3, (32, 32), 5, 8)"
    surroundings = os.environ | {"MMDIT_FAULT": f"kill@{fault}"}
    ended = subprocess.run([sys.executable, "-c", code], env=surroundings, timeout=120)
    assert ended.returncode == -signal.SIGKILL
    assert not (folder / "captions.csv").exists()
    make_clips(folder, 12, 3, (32, 32), 5, 8)
    assert contents(folder) == contents(whole)


def test_a_dead_worker_and_a_full_disk_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMDIT_FAULT", "kill@clips/000005.mp4:begin")
    with pytest.raises(Stopped, match="worker ended"):
        make_clips(tmp_path / "a", 12, 3, (32, 32), 2, 8, workers=2)
    monkeypatch.setenv("MMDIT_FAULT", "full@clips/000005.mp4:written")
    with pytest.raises(Stopped, match="disk is full"):
        make_clips(tmp_path / "b", 12, 3, (32, 32), 2, 8)
    monkeypatch.delenv("MMDIT_FAULT")
    for name in "ab":
        assert not (tmp_path / name / "captions.csv").exists()
        make_clips(tmp_path / name, 12, 3, (32, 32), 2, 8)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


BAD = [
    ({"count": 0}, "count, got 0"),
    ({"count": -3}, "count, got -3"),
    ({"count": 10**9}, "count"),
    ({"size": (63, 64)}, "63x64; use 64x64"),
    ({"size": (30, 64)}, "30x64.*use 32x64"),
    ({"size": (64, 4096)}, "use 64x1024"),
    ({"frames": 0}, "frames, got 0"),
    ({"frames": 10**6}, "at most 10922"),
    ({"fps": 0}, "fps, got 0"),
    ({"fps": float("nan")}, "fps, got nan"),
    ({"workers": 0}, "workers, got 0"),
]


@pytest.mark.parametrize(("changes", "words"), BAD)
def test_refused_before_anything_is_written(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    arguments = {"count": 4, "seed": 0, "size": (64, 48), "frames": 17, "fps": 8.0} | changes
    with pytest.raises(Refused, match=words):
        make_clips(tmp_path / "new", **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"seed": 4}, "seed, got 4, expected 3"), ({"count": 13}, "count, got 13, expected 12"),
     ({"size": (32, 34)}, r"size, got \[32, 34\], expected \[32, 32\]"), ({"frames": 6}, "frames"),
     ({"fps": 9}, "fps")],
)  # fmt: skip
def test_other_settings_are_refused(whole: Path, changes: dict[str, int], words: str) -> None:
    before = contents(whole)
    arguments = {"count": 12, "seed": 3, "size": (32, 32), "frames": 5, "fps": 8.0} | changes
    with pytest.raises(Refused, match=words):
        make_clips(whole, **arguments)  # type: ignore[arg-type]
    assert contents(whole) == before


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/holiday.mp4").write_bytes(b"film")
    (tmp_path / "file").write_text("text")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/made.json").write_text("{")
    for name, words in (("mine", "holiday.mp4"), ("file", "not a folder"), ("file/in", "cannot be written"),
                        ("bad", "cannot be read")):  # fmt: skip
        with pytest.raises(Refused, match=words):
            make_clips(tmp_path / name, 2, 0, (32, 32), 2)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["holiday.mp4"]


def test_an_unwritable_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path, *rest: object, **more: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", denied)  # file modes do not stop the superuser, as whom tests may run
    with pytest.raises(Refused, match="permission denied"):
        make_clips(tmp_path / "new", 2, 0, (32, 32), 2)


# --- the pictures ---


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
