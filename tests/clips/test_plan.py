"""What the made clips promise of their division, attributes and captions."""

import re
from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from mmdit.clips import made
from mmdit.clips.captions import CHOICES, DOING, PLACE, TEMPLATES, WORN, caption
from mmdit.clips.made import COLOURS, GARMENTS, PATTERNS, plan_clips, prompts
from mmdit.errors import Refused

AXES = ("garment", "colour", "pattern", "motion", "background")


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


def test_variety_is_how_unlike_the_clips_are_beside_their_attributes() -> None:
    full, some, none = (plan_clips(300, 3, variety) for variety in (1.0, 0.2, 0.0))
    assert full == plan_clips(300, 3)
    assert [one.row() for one in full] == [one.row() for one in some] == [one.row() for one in none]
    assert len({one.look for one in none}) == 1
    spread = [np.std([one.look for one in clips], axis=0) for clips in (full, some)]
    assert np.allclose(spread[1], 0.2 * spread[0], rtol=1e-6)
    assert all(0 <= number < 1 for one in some for number in one.look)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(Refused, match="variety"):
            plan_clips(9, 3, wrong)


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
