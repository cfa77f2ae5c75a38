"""The two terms of the variational bound, in nats and number by number."""

import math

import torch
from torch import Tensor


def normal_kl(mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor) -> Tensor:
    """KL(N(mean, variance) || N(other mean, other variance)), of the shape they broadcast to."""
    ratio = log_variance - other_log_variance
    return 0.5 * (ratio.exp() - 1 - ratio + (mean - other_mean) ** 2 * torch.exp(-other_log_variance))


def decoder_nll(x_0: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """-log of the probability of x_0's bin under N(mean, variance): eq. 13 of 2006.11239.

    The bins are those of 8-bit pixels in [-1, 1], 2 / 255 wide; the outermost reach to infinity.
    """
    away, rate = x_0 - mean, torch.exp(-0.5 * log_variance)
    below_upper = _normal_cdf(rate * (away + 1 / 255))
    below_lower = _normal_cdf(rate * (away - 1 / 255))
    lowest, highest = x_0 < -0.999, x_0 > 0.999
    probability = torch.where(lowest, below_upper, torch.where(highest, 1 - below_lower, below_upper - below_lower))
    return -probability.clamp(min=1e-12).log()


def _normal_cdf(x: Tensor) -> Tensor:
    """The normal's distribution function in its tanh form, as the paper's numbers were made with."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
