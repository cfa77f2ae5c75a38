"""Distances of two sets of features that no Gaussian is fitted to: KID, precision and recall.

Shapes: n and m samples, d features. All sums are float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdit import seeds
from mmdit.errors import Refused

SUBSETS = 100
AT_ONCE = 1024  # rows of a table of distances


@dataclass(frozen=True)
class Kid:
    """Mean and deviation over subsets of `size` samples of either side."""

    mean: float
    std: float
    size: int


def kernel_distance(real: Tensor, generated: Tensor, *, size: int, seed: int) -> Kid:
    """The kernel inception distance (Binkowski et al. 2018, arXiv 1801.01401) of features (n, d) and (m, d).

    The unbiased square of the maximum mean discrepancy under the kernel (x y / d + 1)^3, over 100 pairs of subsets that
    are drawn by `seed`; over all samples, once, where there are no more than `size` on either side.
    """
    _check(real, generated, least=2)
    size = min(size, len(real), len(generated))
    whole = size == len(real) == len(generated)
    values = []
    for subset in range(1 if whole else SUBSETS):
        x = _drawn(real, size, seeds.generator(seed, "kid", "real", subset))
        y = _drawn(generated, size, seeds.generator(seed, "kid", "generated", subset))
        values.append(_discrepancy(x.double(), y.double()))
    each = torch.tensor(values, dtype=torch.float64)
    return Kid(float(each.mean()), float(each.std(unbiased=False)), size)


def _drawn(features: Tensor, size: int, random: torch.Generator) -> Tensor:
    return features if size == len(features) else features[torch.randperm(len(features), generator=random)[:size]]


def _discrepancy(x: Tensor, y: Tensor) -> float:
    """MMD^2 without bias: pairs of a sample with itself are left out."""
    n, d = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / d + 1) ** 3

    own = sum((part.sum() - part.trace()) / (n * (n - 1)) for part in (kernel(x, x), kernel(y, y)))
    return float(own - 2 * kernel(x, y).mean())


def precision_recall(real: Tensor, generated: Tensor, *, neighbours: int) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991) of features (n, d) and (m, d).

    Precision is the share of generated samples within the ball around some real sample that reaches to its k-th nearest
    neighbour among the real ones; recall is the same the other way round.
    """
    _check(real, generated, least=neighbours + 1)
    return _covered(real, generated, neighbours), _covered(generated, real, neighbours)


def _covered(centres: Tensor, points: Tensor, neighbours: int) -> float:
    centres, points = centres.double(), points.double()
    radii = torch.cat([
        torch.cdist(part, centres).kthvalue(neighbours + 1).values for part in centres.split(AT_ONCE)
    ])  # fmt: skip
    inside = [(torch.cdist(part, centres) <= radii).any(1) for part in points.split(AT_ONCE)]
    return float(torch.cat(inside).double().mean())


def _check(real: Tensor, generated: Tensor, least: int) -> None:
    if real.shape[1] != generated.shape[1]:
        raise Refused("features of two networks", got=f"{real.shape[1]} and {generated.shape[1]} features")
    if min(len(real), len(generated)) < least:
        raise Refused("too few samples", got=f"{len(real)} and {len(generated)}", expected=f"at least {least} of each")
