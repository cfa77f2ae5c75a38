"""What the made clips show: their attributes, how they are spread over the clips, and how these are divided.

A clip is a function of the seed and of its number alone: how many clips there are does not change it. Garment, colour
and motion form 200 triples; some are held out: they never occur in training, while each of their pairs does, so that a
model can be asked for combinations that it has not seen.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, product

import numpy as np

from mmdit import seeds
from mmdit.clips.captions import CHOICES, PLACE, caption
from mmdit.clips.film import LOOK
from mmdit.clips.outfits import TOPS
from mmdit.clips.palette import PALETTE
from mmdit.errors import Refused

GARMENTS = tuple(TOPS)
COLOURS = tuple(PALETTE)
PATTERNS = ("plain", "stripes", "dots")
MOTIONS = ("walks left", "walks right", "turns round", "steps toward the camera", "stands and sways")
BACKGROUNDS = tuple(PLACE)
SPLITS = ("train", "validation", "held_out")
COLUMNS = ("path", "caption", "label", "split", "garment", "colour", "pattern", "motion", "background")
HELD_OUT = 20  # of the 200 triples
MOST_CLIPS = 1_000_000
USUAL = 0.75  # what every look number is without variety

Triple = tuple[str, str, str]  # garment, colour, motion
ROUND = (*["train"] * 3, "validation", *["train"] * 4, "held_out", *["train"] * 3)  # splits of successive clips


@dataclass(frozen=True)
class MadeClip:
    """All there is to know of one made clip."""

    index: int
    seed: int
    garment: str
    colour: str
    pattern: str
    motion: str
    background: str
    caption: str
    split: str
    look: tuple[float, ...] = field(repr=False)  # numbers in [0, 1), named by film.LOOK

    @property
    def path(self) -> str:
        return f"clips/{self.index:06d}.mp4"

    @property
    def attributes(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in ("garment", "colour", "pattern", "motion", "background")}

    def row(self) -> dict[str, str]:
        """The clip's row of captions.csv."""
        return {
            "path": self.path,
            "caption": self.caption,
            "label": self.garment,
            "split": self.split,
            **self.attributes,
        }


def _shuffled(count: int, seed: int, *place: seeds.Place) -> list[int]:
    return np.argsort(seeds.uniform((count,), seed, *place).numpy(), kind="stable").tolist()


def held_out_triples(seed: int) -> tuple[Triple, ...]:
    """The triples (garment, colour, motion) that training never shows: equally many of each garment and motion.

    No two of them share a pair, so each pair of values keeps nearly all of its combinations in training.
    """
    triples = list(product(GARMENTS, COLOURS, MOTIONS))
    most = [-(-HELD_OUT // len(values)) for values in (GARMENTS, COLOURS, MOTIONS)]
    for attempt in range(1000):
        chosen: list[Triple] = []
        for at in _shuffled(len(triples), seed, "held out", attempt):
            same = [[a == b for a, b in zip(triples[at], old, strict=True)] for old in chosen]
            apart = all(sum(one) < 2 for one in same)
            even = all(sum(one[axis] for one in same) < most[axis] for axis in range(3))
            if apart and even:
                chosen.append(triples[at])
        if len(chosen) == HELD_OUT:
            return tuple(sorted(chosen))
    raise Refused("no choice of held-out triples was found", where="seed", got=seed, fix="use another seed")


def _attributes(split: str, seed: int) -> Iterator[dict[str, str]]:
    """Endless attribute combinations of a split: round after round of its triples in a new order.

    Patterns and backgrounds move on by one each round, from places spread evenly over the triples.
    """
    held = set(held_out_triples(seed))
    triples = [t for t in product(GARMENTS, COLOURS, MOTIONS) if (t in held) == (split == "held_out")]
    turn = 0
    while True:
        for at in _shuffled(len(triples), seed, "order", split, turn):
            garment, colour, motion = triples[at]
            g, c, m = GARMENTS.index(garment), COLOURS.index(colour), MOTIONS.index(motion)
            yield {
                "garment": garment,
                "colour": colour,
                "pattern": PATTERNS[(g + c + m + turn) % len(PATTERNS)],
                "motion": motion,
                "background": BACKGROUNDS[(2 * g + c + 3 * m + turn + turn // len(PATTERNS)) % len(BACKGROUNDS)],
            }
        turn += 1


def plan_clips(count: int, seed: int, variety: float = 1.0) -> list[MadeClip]:
    """The first `count` clips of a seed, divided into train (5 of 6), validation and held_out (1 of 12 each).

    From 216 clips on, every pair of values of garment, colour and motion occurs in train. `variety` in [0, 1] is how
    unlike each other people, light, camera and the time of a step are: at 0 they are the same in all clips. Attributes
    vary fully at any variety. Raises Refused for counts outside 1 to MOST_CLIPS, and for other varieties.
    """
    if not 1 <= count <= MOST_CLIPS:
        raise Refused("so many clips cannot be made", where="count", got=count, expected=f"1 to {MOST_CLIPS}")
    if not 0 <= variety <= 1:
        raise Refused("such a variety cannot be made", where="variety", got=variety, expected="0 to 1")
    streams = {split: _attributes(split, seed) for split in SPLITS}
    clips = []
    for index in range(count):
        split = ROUND[index % len(ROUND)]
        attributes = next(streams[split])
        numbers = seeds.uniform((CHOICES + len(LOOK),), seed, "made clip", index).tolist()
        text = caption(attributes, numbers[:CHOICES])
        look = tuple((1 - variety) * USUAL + variety * number for number in numbers[CHOICES:])
        clips.append(MadeClip(index, seed, **attributes, caption=text, split=split, look=look))
    return clips


def prompts(split: str, count: int, seed: int) -> list[dict[str, str]]:
    """`count` attribute combinations of a split with a caption each, to ask a generator for.

    The keys are garment, colour, pattern, motion, background and caption. Combinations are spread as evenly as can be;
    "train" and "validation" give trained triples, "held_out" the others.
    """
    if split not in SPLITS:
        raise Refused("there is no such split", got=split, expected=" or ".join(SPLITS))
    found = []
    for index, attributes in enumerate(islice(_attributes(split, seed), count)):
        numbers = seeds.uniform((CHOICES,), seed, "prompt", split, index).tolist()
        found.append({**attributes, "caption": caption(attributes, numbers)})
    return found
