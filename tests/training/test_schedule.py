"""Which clip stands where: each as often as asked, none left out, in constant time."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit.training.schedule import Schedule, Stream, times_an_epoch


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 16)), min_size=2, max_size=4),
    st.integers(0, 5),
)
def test_every_bucket_has_all_of_its_batches_one_after_the_other(buckets: list[tuple[int, int]], seed: int) -> None:
    samples, batches = zip(*buckets, strict=True)
    schedule = Schedule(samples, batches, seed)
    epochs = 7
    whole = [epochs * count // size for count, size in buckets]
    seen = [schedule.at(step) for step in range(sum(whole))]
    for bucket, expected in enumerate(whole):
        assert [number for chosen, number in seen if chosen == bucket] == list(range(expected))


def test_buckets_are_mixed_and_each_epoch_has_an_order_of_its_own() -> None:
    schedule = Schedule((64, 64), (4, 8), seed=0)
    first, second = ([schedule.at(step)[0] for step in range(n, n + 24)] for n in (0, 24))
    assert Counter(first) == Counter(second) == {0: 16, 1: 8}
    assert first != second
    assert first != sorted(first)
    assert first != [Schedule((64, 64), (4, 8), seed=1).at(step)[0] for step in range(24)]


def test_a_step_far_on_is_found_at_once() -> None:
    schedule = Schedule((1_000_003, 77), (256, 32), seed=0)
    assert schedule.at(10**12)[1] > 9 * 10**11


def test_one_bucket_is_walked_through() -> None:
    assert [Schedule((5,), (2,), 0).at(step) for step in (0, 1, 99)] == [(0, 0), (0, 1), (0, 99)]


def test_a_stream_has_every_clip_once_an_epoch_and_more_often_where_asked() -> None:
    stream = Stream((10, 4), (10, 12), seed=3)
    for epoch in range(3):
        clips = Counter(stream[epoch * 22 + place] for place in range(22))
        assert [clips[0, number] for number in range(10)] == [1] * 10
        assert [clips[1, number] for number in range(4)] == [3] * 4


def test_a_pool_that_is_drawn_in_part_comes_round() -> None:
    stream = Stream((6, 10), (6, 5), seed=0)
    halves = [{number for pool, number in (stream[e * 11 + p] for p in range(11)) if pool == 1} for e in range(4)]
    assert [len(half) for half in halves] == [5] * 4
    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(10))
    assert halves[0] != halves[2]


@pytest.mark.parametrize(
    ("counts", "sources", "shares", "drawn"),
    [
        ([10, 20], [0, 1], [None, None], [10, 20]),
        ([70, 1000], [0, 1], [None, 0.3], [70, 30]),
        ([50, 20, 30], [0, 0, 1], [None, 0.5], [50, 20, 70]),
        ([100, 10], [0, 1], [0.5, 0.5], [100, 100]),
        ([100, 10, 30], [0, 0, 1], [0.5, 0.5], [100, 10, 110]),
        ([3, 1], [1, 1], [0.9, None], [3, 1]),  # the source with a share has no such clips
    ],
)
def test_shares_are_shares_of_the_samples(
    counts: list[int], sources: list[int], shares: list[float | None], drawn: list[int]
) -> None:
    assert times_an_epoch(counts, sources, shares) == drawn
