"""Buckets: the shapes that clips are cut to, and which of them suits a source."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from mmdit.errors import Refused


class Bucket(NamedTuple):
    """The shape of a clip: frames, and height and width in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> "Bucket":
        """FRAMESxHEIGHTxWIDTH; Refused for anything else."""
        match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
        if match is None:
            raise Refused("not a bucket", got=repr(text), expected="FRAMESxHEIGHTxWIDTH, for example 17x64x48")
        return cls(*(int(number) for number in match.groups()))


def choose_bucket(buckets: Sequence[Bucket], frames: int, size: tuple[int, int]) -> Bucket | None:
    """The bucket for a source of so many `frames` at the wanted rate, `size` (height, width) as shown.

    The longest that it has frames for; of these the nearest in shape; of these the largest that need not enlarge it,
    else the smallest. None where it has too few frames for any.
    """
    fitting = [bucket for bucket in buckets if bucket.frames <= frames]
    if not fitting:
        return None
    longest = max(bucket.frames for bucket in fitting)
    height, width = size

    def rank(bucket: Bucket) -> tuple[float, bool, int]:
        enlarged = bucket.height > height or bucket.width > width
        area = bucket.height * bucket.width
        return round(_misfit(bucket, height, width), 9), enlarged, area if enlarged else -area

    return min((bucket for bucket in fitting if bucket.frames == longest), key=rank)


def derive_buckets(
    sizes: Iterable[tuple[int, int]], frames: int, *, pixels: int, unit: int, most: int = 8
) -> list[Bucket]:
    """The shapes that suit sources of these sizes (height, width) best, the commonest first.

    Args:
        pixels: what a frame may have at most (a budget of tokens, in pixels).
        unit: heights and widths are multiples of it.
        most: how many buckets at most; the rarest ones give way to their neighbours.

    Raises:
        Refused: not even one unit fits into the budget.
    """
    if pixels < unit * unit:
        raise Refused("the budget has no room for a picture", got=f"{pixels} pixels", expected=f"{unit * unit} or more")
    side = pixels // unit**2  # in units
    # As wide as it can be at each height; of equal widths, the highest.
    widest = {side // height: height for height in range(1, side + 1)}
    shapes = [Bucket(frames, height * unit, width * unit) for width, height in widest.items()]
    count = Counter(sizes)
    while True:
        used: Counter[Bucket] = Counter()
        for size, times in count.items():
            used[min(shapes, key=lambda shape: _misfit(shape, *size))] += times
        if len(used) <= most:
            return [shape for shape, _ in used.most_common()]
        shapes = [shape for shape, _ in used.most_common(len(used) - 1)]


def _misfit(bucket: Bucket, height: int, width: int) -> float:
    return abs(math.log(bucket.height * width / (bucket.width * height)))
