"""The Fréchet distance of two sets of features, and what it would be of endlessly many generated ones.

Shapes: n samples, d features. All sums are float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit import seeds
from mmdit.errors import Refused

SIZES, REPEATS = 5, 3


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and covariance (d, d), float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Gaussian":
        """The mean and the unbiased covariance of features (n, d). Raises Refused for fewer than two."""
        if features.ndim != 2 or len(features) < 2:
            raise Refused("no covariance", got=f"features {tuple(features.shape)}", expected="at least two samples")
        features = features.double()
        mean = features.mean(0)
        centred = features - mean
        return cls(mean, centred.T @ centred / (len(features) - 1))


@dataclass(frozen=True)
class Frechet:
    """The distance of n samples, and extrapolated to endlessly many of them: what differs is the bias at n."""

    value: float
    extrapolated: float

    @property
    def bias(self) -> float:
        return self.value - self.extrapolated


def frechet_distance(a: Gaussian, b: Gaussian, root: Tensor | None = None) -> float:
    """The squared Fréchet (Wasserstein-2) distance of two Gaussians (Dowson and Landau 1982; Heusel et al. 2017):
    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    The product's eigenvalues are those of the symmetric S_a^(1/2) S_b S_a^(1/2), none negative but for rounding, so
    covariances may be singular, as they are of fewer samples than features.

    root: S_a^(1/2), where it is known.
    """
    if a.mean.shape != b.mean.shape:
        raise Refused("features of two networks", got=f"{len(a.mean)} and {len(b.mean)} features")
    root = square_root(a.covariance) if root is None else root
    inner = root @ b.covariance @ root
    shared = torch.linalg.eigvalsh((inner + inner.T) / 2).clamp(min=0).sqrt().sum()
    apart = (a.mean - b.mean).square().sum()
    return float(apart + a.covariance.trace() + b.covariance.trace() - 2 * shared)


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a symmetric matrix (d, d) without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def extrapolated_distance(real: Tensor, generated: Tensor, *, seed: int) -> Frechet:
    """The distance of all samples, and its limit for endlessly many generated ones.

    The distance of n samples is that of endlessly many and, for large n, a term in 1/n: a line in 1/n through the
    distances of smaller sets, drawn from the samples by `seed`, is followed to 0 (Chong and Forsyth 2020, FID-infinity,
    arXiv 1911.07023). The real samples stay all in use.

    real, generated: (n, d), or (n, f, d) for f frames a clip, each a sample of its own; what is drawn is clips.
    """
    gaussian = Gaussian.of(_rows(real))
    root = square_root(gaussian.covariance)
    count = len(generated)
    value = frechet_distance(gaussian, Gaussian.of(_rows(generated)), root)
    sizes = sorted({max(2, round(count * (SIZES + place) / (2 * SIZES))) for place in range(SIZES)} - {count})
    points = [(1 / count, value)] * REPEATS
    for size in sizes:
        for repeat in range(REPEATS):
            drawn = torch.randperm(count, generator=seeds.generator(seed, "frechet", size, repeat))[:size]
            part = Gaussian.of(_rows(generated[drawn]))
            points.append((1 / size, frechet_distance(gaussian, part, root)))
    return Frechet(value, _at_zero(points))


def _rows(features: Tensor) -> Tensor:
    return features.flatten(0, -2) if features.ndim > 2 else features


def _at_zero(points: list[tuple[float, float]]) -> float:
    """Where the line of least squares through (x, y) is at x = 0."""
    x, y = torch.tensor(points, dtype=torch.float64).T
    away = x - x.mean()
    spread = away.square().sum()
    slope = (away * y).sum() / spread if spread > 0 else torch.zeros((), dtype=torch.float64)
    return float(y.mean() - slope * x.mean())
