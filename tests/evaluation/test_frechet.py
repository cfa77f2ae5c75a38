"""The Fréchet distance: SciPy's matrix square root, closed forms, singular covariances, and the bias of few samples."""

import numpy as np
import pytest
import torch
from torch import Tensor

from mmdit.errors import Refused
from mmdit.evaluation.frechet import Gaussian, extrapolated_distance, frechet_distance, square_root

# With scipy.linalg.sqrtm of SciPy 1.17.1 in place of the eigenvalues, on the features of `features_of`.
SCIPY = {(0, 5): 4.569922337249949, (1, 16): 11.0153757404071, (2, 64): 33.3972624931162}


def features_of(seed: int, d: int) -> tuple[Tensor, Tensor]:
    random = np.random.default_rng(seed)
    a = random.standard_normal((3 * d, d))
    b = random.standard_normal((3 * d, d)) @ np.diag(random.uniform(0.2, 2, d)) + 0.3
    return torch.from_numpy(a), torch.from_numpy(b)


@pytest.mark.parametrize(("seed", "d"), SCIPY)
def test_equal_to_scipys_matrix_square_root(seed: int, d: int) -> None:
    a, b = (Gaussian.of(part) for part in features_of(seed, d))
    assert frechet_distance(a, b) == pytest.approx(SCIPY[seed, d], abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(SCIPY[seed, d], abs=1e-6)
    product = a.covariance.numpy() @ b.covariance.numpy()  # not symmetric: its eigenvalues found in another way
    shared = np.sqrt(np.linalg.eigvals(product).real).sum()
    apart = float((a.mean - b.mean).square().sum())
    by_numpy = apart + float(a.covariance.trace() + b.covariance.trace()) - 2 * shared
    assert frechet_distance(a, b) == pytest.approx(by_numpy, abs=1e-6)


def test_closed_form_of_gaussians() -> None:
    """With covariances that commute it is |m_a - m_b|^2 + sum (s_a - s_b)^2."""
    a = Gaussian(torch.zeros(3).double(), torch.diag(torch.tensor([1.0, 4.0, 9.0]).double()))
    b = Gaussian(torch.tensor([1.0, 0, 2]).double(), torch.diag(torch.tensor([4.0, 4.0, 1.0]).double()))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 4, abs=1e-12)
    assert frechet_distance(a, b, square_root(a.covariance)) == frechet_distance(a, b)


def test_many_samples_of_gaussians_come_to_the_closed_form() -> None:
    random = torch.Generator().manual_seed(0)
    base = torch.randn(2**15, 2, generator=random, dtype=torch.float64)
    a = (base - base.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(base.T))).T  # exactly standard
    assert frechet_distance(Gaussian.of(a), Gaussian.of(3 * a + 1)) == pytest.approx(2 + 2 * 4, abs=1e-3)


def test_singular_covariances() -> None:
    random = torch.Generator().manual_seed(1)
    few = torch.randn(8, 32, generator=random)  # rank 7
    flat = few.clone()
    flat[:, 16:] = 0.5
    assert frechet_distance(Gaussian.of(few), Gaussian.of(few)) == pytest.approx(0, abs=1e-5)
    moved = frechet_distance(Gaussian.of(few), Gaussian.of(few + 2))
    assert moved == pytest.approx(32 * 4, rel=1e-5)
    assert np.isfinite(frechet_distance(Gaussian.of(few), Gaussian.of(flat)))
    still = Gaussian.of(torch.zeros(4, 3))
    assert frechet_distance(still, Gaussian.of(torch.ones(4, 3))) == 3


def test_fewer_samples_are_farther_off_and_the_line_makes_up_for_it() -> None:
    random = torch.Generator().manual_seed(2)
    real, same = torch.randn(20_000, 16, generator=random), torch.randn(400, 16, generator=random)
    found = extrapolated_distance(real, same, seed=0)
    assert found.value == pytest.approx(frechet_distance(Gaussian.of(real), Gaussian.of(same)))
    assert found.bias == found.value - found.extrapolated
    assert found.value > 0.15  # though both are of one distribution
    assert abs(found.extrapolated) < found.value / 4
    assert extrapolated_distance(real, same, seed=0) == found
    shifted = extrapolated_distance(real, same + 0.5, seed=0)
    assert shifted.extrapolated == pytest.approx(16 * 0.25, rel=0.1)


def test_frames_are_samples_but_clips_are_drawn() -> None:
    random = torch.Generator().manual_seed(3)
    clips = torch.randn(40, 5, 4, generator=random)
    found = extrapolated_distance(clips, clips + 1, seed=0)
    assert found.value == pytest.approx(4, abs=1e-6)
    flat = clips.flatten(0, 1)
    assert found.value == pytest.approx(frechet_distance(Gaussian.of(flat), Gaussian.of(flat + 1)))


def test_what_has_no_covariance_is_refused() -> None:
    with pytest.raises(Refused, match="at least two samples"):
        Gaussian.of(torch.zeros(1, 3))
    with pytest.raises(Refused, match="3 and 4 features"):
        frechet_distance(Gaussian.of(torch.zeros(2, 3)), Gaussian.of(torch.zeros(2, 4)))
