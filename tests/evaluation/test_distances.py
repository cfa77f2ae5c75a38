"""KID, precision and recall, on sets that they are known of."""

import pytest
import torch

from mmdit.errors import Refused
from mmdit.evaluation.distances import kernel_distance, precision_recall


def test_kid_is_the_sum_over_all_pairs() -> None:
    x, y = torch.tensor([[0.0, 1], [2, 1], [1, 1]]), torch.tensor([[1.0, 0], [0, 0], [3, 1]])

    def kernel(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 2 + 1) ** 3)

    own = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(3) for j in range(3) if i != j) / 6
    across = sum(kernel(a, b) for a in x for b in y) / 9
    found = kernel_distance(x, y, size=1000, seed=0)
    assert found.mean == pytest.approx(own - 2 * across)
    assert (found.std, found.size) == (0, 3)


def test_kid_of_one_distribution_is_about_nothing_and_grows_with_the_distance() -> None:
    random = torch.Generator().manual_seed(0)
    a, b = torch.randn(600, 8, generator=random), torch.randn(500, 8, generator=random)
    same, apart = kernel_distance(a, b, size=200, seed=0), kernel_distance(a, b + 1, size=200, seed=0)
    assert abs(same.mean) < 3 * same.std
    assert apart.mean > 10 * same.std
    assert kernel_distance(a, b, size=200, seed=0) == same
    assert kernel_distance(a, b, size=200, seed=1) != same


def test_precision_and_recall_of_a_mode_that_is_missing_and_of_one_that_is_made_up() -> None:
    random = torch.Generator().manual_seed(0)
    left, right = (torch.randn(50, 3, generator=random) + 100 * side for side in (-1, 1))
    real = torch.cat([left, right])
    assert precision_recall(real, left + 0.01, neighbours=3) == pytest.approx((1, 0.5), abs=0.05)
    assert precision_recall(left, real + 0.01, neighbours=3) == pytest.approx((0.5, 1), abs=0.05)
    assert precision_recall(left, right, neighbours=3) == (0.0, 0.0)


def test_the_nearest_neighbour_is_not_the_point_itself() -> None:
    line = torch.arange(5.0).view(-1, 1)
    assert precision_recall(line, line + 0.9, neighbours=1)[0] == 1
    assert precision_recall(line, line + 100, neighbours=1)[0] == 0


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(Refused, match="at least 4"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2), neighbours=3)
    with pytest.raises(Refused, match="2 and 3 features"):
        kernel_distance(torch.zeros(3, 2), torch.zeros(3, 3), size=9, seed=0)
