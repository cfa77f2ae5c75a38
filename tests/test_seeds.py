"""Randomness is a function of seed and place alone."""

import pytest
import torch

from mmdit.seeds import generator, generators, normal, seed_at, uniform


def test_same_place_same_numbers_other_place_others() -> None:
    assert torch.equal(normal((4,), 3, "noise", 7, 1), normal((4,), 3, "noise", 7, 1))
    places = [
        (3, "noise", 7, 1),
        (3, "noise", 7, 2),
        (3, "noise", 71),
        (4, "noise", 7, 1),
        (3, "noise7", 1),
        (3, "n", 7),
    ]
    assert len({seed_at(*place) for place in places}) == len(places)


def test_nothing_drawn_elsewhere_matters() -> None:
    expected = uniform((3,), 0, "a")
    torch.rand(10)
    generator(0, "b").initial_seed()
    assert torch.equal(uniform((3,), 0, "a"), expected)


def test_neighbouring_places_are_unrelated() -> None:
    rows = torch.stack([normal((1000,), 0, "noise", step) for step in range(20)])
    correlations = torch.corrcoef(rows) - torch.eye(20)
    assert correlations.abs().max() < 0.15


def test_these_very_numbers_stay() -> None:
    assert seed_at(0, "noise", 1, 2) == 3420038565190068946
    assert normal((3,), 0, "noise", 1, 2).tolist() == pytest.approx([-0.1774, -0.8664, 3.7723], abs=1e-4)


def test_a_samples_generator_does_not_depend_on_the_others() -> None:
    together, alone = generators(range(4), 0, "steps"), generators([2], 0, "steps")[0]
    for other in together[:2]:
        torch.randn(5, generator=other)
    assert torch.equal(torch.randn(3, generator=together[2]), torch.randn(3, generator=alone))
    assert len({made.initial_seed() for made in (*together, *generators(range(4), 0, "start"))}) == 8
