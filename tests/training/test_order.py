"""The order of an epoch: a permutation, shuffled, and a function of (seed, epoch)."""

import itertools
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdit.training.order import EpochOrder


@pytest.mark.parametrize("counts", [range(1, 120), (997, 1000, 1024, 1025, 4095, 4096, 4097)], ids=["few", "many"])
def test_every_count_gives_a_permutation(counts: range) -> None:
    for count in counts:
        for epoch in range(2):
            assert sorted(EpochOrder(count, 3, epoch)) == list(range(count)), count


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 2000), seed=st.integers(0, 2**62), epoch=st.integers(0, 10**6))
def test_any_seed_gives_a_permutation(count: int, seed: int, epoch: int) -> None:
    assert len(set(EpochOrder(count, seed, epoch))) == count


def test_seed_and_epoch_decide() -> None:
    first = list(EpochOrder(1000, 0, 0))
    assert first == list(EpochOrder(1000, 0, 0))
    for other in (EpochOrder(1000, 1, 0), EpochOrder(1000, 0, 1)):
        same = sum(a == b for a, b in zip(first, other, strict=True))
        assert same < 10  # of two unrelated orders, one place on average


@pytest.mark.parametrize("count", [4096, 5000, 10_007])
def test_it_is_shuffled(count: int) -> None:
    bound = 5 / np.sqrt(count)  # five deviations of what chance gives
    for epoch in range(4):
        order = np.array(list(EpochOrder(count, 1, epoch)), float)
        places = np.arange(count)
        assert abs(np.corrcoef(places, order)[0, 1]) < bound
        for lag in (1, 2, int(np.sqrt(count)), int(np.sqrt(count)) + 1):
            assert abs(np.corrcoef(order[:-lag], order[lag:])[0, 1]) < bound, lag
        # neighbours stay neighbours about twice, whatever the count
        assert (np.abs(np.diff(order)) == 1).sum() < 12
        # each quarter of the epoch visits each quarter of the numbers alike
        table, *_ = np.histogram2d(places, order, bins=4)
        expected = count / 16
        assert ((table - expected) ** 2 / expected).sum() < 40  # chi-square with 9 degrees of freedom: p below 1e-5
        # and two epochs have nothing to do with each other
        assert abs(np.corrcoef(order, list(EpochOrder(count, 1, epoch + 1)))[0, 1]) < bound


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_orders_of_a_few_are_alike_frequent(count: int) -> None:
    draws, every = 3000, list(itertools.permutations(range(count)))
    seen = Counter(tuple(EpochOrder(count, 5, epoch)) for epoch in range(draws))
    expected = draws / len(every)
    deviations = [abs(seen[order] - expected) / np.sqrt(expected) for order in every]
    assert max(deviations) < 5


def test_a_long_epoch_needs_no_list() -> None:
    order = EpochOrder(10**12, 0, 0)
    held = sys.getsizeof(vars(order)) + sum(map(sys.getsizeof, vars(order).values()))
    assert held < 2000
    some = [order[place] for place in range(0, 10**12, 10**9)]
    assert len(set(some)) == 1000 and all(0 <= number < 10**12 for number in some)
    assert 0.45e12 < np.mean(some) < 0.55e12


def test_what_is_not_there() -> None:
    order = EpochOrder(5, 0, 0)
    for place in (-1, 5):
        with pytest.raises(IndexError, match=f"place {place} of 5"):
            order[place]
    with pytest.raises(ValueError, match="order of 0"):
        EpochOrder(0, 0, 0)
