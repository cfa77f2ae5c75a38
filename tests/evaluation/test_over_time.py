"""Flicker, drift and SSIM, on clips that they are known of."""

import math

import pytest
import torch

from mmdit.errors import Refused
from mmdit.evaluation.over_time import drift, flicker, ssim


def test_flicker_counts_what_comes_back_and_not_what_goes_on() -> None:
    steps = torch.arange(6).view(1, 1, 6, 1, 1).expand(1, 3, 6, 4, 4)
    still, ramp, blink = torch.full_like(steps, 9), 20 * steps, 30 * (steps % 2)
    assert flicker(torch.cat([still, ramp, blink]).byte()).tolist() == [0, 0, 30]
    with pytest.raises(Refused):
        flicker(torch.zeros(1, 3, 2, 4, 4, dtype=torch.uint8))


def test_drift_is_the_angle_from_the_first_frame() -> None:
    features = torch.tensor([[[1.0, 0], [2, 0], [0, 3], [-1, 0]]])
    assert drift(features)[0].tolist() == pytest.approx([0, 1, 2])


def test_ssim_of_equal_and_of_shifted_pictures() -> None:
    random = torch.Generator().manual_seed(0)
    clip = torch.rand(2, 3, 2, 16, 20, generator=random) * 2 - 1
    assert ssim(clip, clip).tolist() == pytest.approx([1, 1])
    flat = torch.zeros(1, 3, 1, 12, 12)
    # without variance only the means count: (2 a b + c) / (a^2 + b^2 + c), c = (0.01 * 2)^2
    expected = (2 * 0.5 * 0.7 + 4e-4) / (0.25 + 0.49 + 4e-4)
    assert ssim(flat + 0.5, flat + 0.7).item() == pytest.approx(expected, abs=1e-5)
    noisy = (clip + 0.3 * torch.randn(clip.shape, generator=random)).clamp(-1, 1)
    assert 0.5 < ssim(clip, noisy)[0] < 0.99
    assert math.isclose(ssim(clip, noisy)[1], ssim(clip[1:], noisy[1:])[0], rel_tol=1e-6)
    with pytest.raises(Refused):
        ssim(clip[..., :10], clip[..., :10])
