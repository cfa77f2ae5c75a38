"""Buckets: parsing, choosing, deriving."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdit.clips.buckets import Bucket, choose_bucket, derive_buckets
from mmdit.errors import Refused

BUCKETS = [Bucket(*sides) for sides in ((1, 64, 64), (17, 64, 48), (17, 128, 96), (17, 48, 64), (33, 64, 48))]


def test_a_bucket_is_written_and_read() -> None:
    assert Bucket.parse(" 17x64x48 ") == Bucket(17, 64, 48)
    assert str(Bucket(17, 64, 48)) == "17x64x48"
    for text in ("17x64", "0x64x48", "17x64x48x1", "-1x2x3", "17X64X48", ""):
        with pytest.raises(Refused, match="not a bucket.*FRAMESxHEIGHTxWIDTH"):
            Bucket.parse(text)


@pytest.mark.parametrize(
    ("frames", "size", "chosen"),
    [
        (1, (640, 480), "1x64x64"),
        (16, (640, 480), "1x64x64"),
        (17, (640, 480), "17x128x96"),  # the largest that need not enlarge it
        (17, (100, 75), "17x64x48"),
        (17, (20, 15), "17x64x48"),  # each enlarges it: the smallest
        (32, (480, 640), "17x48x64"),  # the nearest in shape
        (999, (480, 640), "33x64x48"),  # length goes before shape
    ],
)
def test_the_longest_then_the_nearest_then_the_largest(frames: int, size: tuple[int, int], chosen: str) -> None:
    assert str(choose_bucket(BUCKETS, frames, size)) == chosen
    assert str(choose_bucket(BUCKETS[::-1], frames, size)) == chosen


def test_too_few_frames_for_any() -> None:
    assert choose_bucket(BUCKETS[1:], 16, (64, 48)) is None


sides = st.integers(1, 4000)


@given(st.lists(st.tuples(sides, sides), min_size=1, max_size=30), st.integers(1, 5), st.sampled_from([8, 16]))
def test_derived_buckets_keep_the_budget_and_serve_the_commonest(
    sizes: list[tuple[int, int]], most: int, unit: int
) -> None:
    buckets = derive_buckets(sizes, 17, pixels=64 * 64, unit=unit, most=most)
    assert 1 <= len(buckets) <= most and len(set(buckets)) == len(buckets)
    for frames, height, width in buckets:
        assert frames == 17 and height * width <= 64 * 64
        assert height % unit == width % unit == 0
        assert height * (width + unit) > 64 * 64  # no room is left unused


def test_derived_buckets_are_of_the_sources_shapes() -> None:
    sizes = [(1920, 1080)] * 5 + [(1080, 1920)] * 3 + [(1000, 1000)]
    three = derive_buckets(sizes, 1, pixels=256 * 256, unit=16)
    assert len(three) == 3
    for (_, height, width), (h, w) in zip(three, ((1920, 1080), (1080, 1920), (1000, 1000)), strict=True):
        assert math.log(height / width) == pytest.approx(math.log(h / w), abs=0.15)
    assert derive_buckets(sizes, 1, pixels=256 * 256, unit=16, most=2) == three[:2]
    with pytest.raises(Refused, match="no room for a picture, got 255 pixels, expected 256 or more"):
        derive_buckets(sizes, 1, pixels=255, unit=16)
