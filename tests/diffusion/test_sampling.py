"""Sampling and guidance on problems with a known answer."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmdit.diffusion import guided, sample

MEAN, STD = 1.5, 0.5


def velocity(x_t: Tensor, timesteps: Tensor) -> Tensor:
    """The exact velocity for data distributed N(MEAN, STD^2): E[noise - x_0 | x_t]."""
    t = (timesteps / 1000).view(-1, *[1] * (x_t.ndim - 1))
    spread = (1 - t) ** 2 * STD**2 + t**2  # variance of x_t
    away = x_t - (1 - t) * MEAN
    return t / spread * away - (MEAN + (1 - t) * STD**2 / spread * away)


def exact(noise: Tensor) -> Tensor:
    """Where the flow carries a noise: the map between the two normal distributions."""
    return MEAN + STD * noise


def error(steps: int) -> float:
    noise = torch.randn(64, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    out = sample(velocity, noise, FlowMatchEulerDiscreteScheduler(), steps)
    return (out - exact(noise)).abs().mean().item()


def test_it_arrives_and_half_the_step_is_half_the_error() -> None:
    errors = [error(steps) for steps in (16, 32, 64)]
    assert errors[-1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.25)


def test_each_step_is_told_of_and_samples_do_not_see_each_other() -> None:
    noise = torch.randn(3, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    told: list[int] = []
    together = sample(velocity, noise, FlowMatchEulerDiscreteScheduler(), 5, after_step=told.append)
    alone = sample(velocity, noise[1:2], FlowMatchEulerDiscreteScheduler(), 5)
    assert told == [1, 2, 3, 4, 5]
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=0)


def test_the_steps_are_even_and_the_last_one_counts() -> None:
    asked: list[float] = []

    def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(timesteps[0].item())
        return torch.full_like(x_t, 3.0)

    out = sample(predict, torch.zeros(1, 1, 1, 2, 2), FlowMatchEulerDiscreteScheduler(), 4)
    assert asked == [1000.0, 750.0, 500.0, 250.0]
    torch.testing.assert_close(out, torch.full_like(out, -3.0))  # all the way from 1 to 0


def test_guidance_goes_past_the_conditional_and_costs_nothing_at_one() -> None:
    calls = []

    def both(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x_t))
        assert torch.equal(x_t[:2], x_t[2:]) and torch.equal(t[:2], t[2:])
        return torch.cat([torch.full_like(x_t[:2], 3.0), torch.full_like(x_t[2:], 1.0)])

    def alone(x_t: Tensor, t: Tensor) -> Tensor:
        calls.append(len(x_t))
        return torch.full_like(x_t, 3.0)

    x, t = torch.randn(2, 1, 1, 2, 2), torch.tensor([10.0, 20.0])
    for scale, expected in ((2.0, 5.0), (0.5, 2.0), (0.0, 1.0), (1.0, 3.0)):
        assert guided(both, alone, scale)(x, t).unique().tolist() == [expected]
    assert calls == [4, 4, 4, 2]
