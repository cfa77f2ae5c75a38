"""The sampling loop: where it asks, what it hands on, and what it refuses."""

import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from mmdit.diffusion import SAMPLERS, GaussianDiffusion, RectifiedFlow, make_scheduler, sample, samplers_for
from mmdit.diffusion.gaussian import BETAS
from mmdit.diffusion.samplers import Process
from mmdit.diffusion.sampling import Step, respaced
from mmdit.errors import Refused
from mmdit.seeds import generators

MEAN, STD = 1.5, 0.5
FLOW, PAPER = RectifiedFlow(), GaussianDiffusion()
PAIRS = [(process, name) for process in (FLOW, PAPER) for name in samplers_for(process)]
NOISE = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def title(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Process) else str(value)


def half(process: Process, other: float = 0.0) -> Callable[[Tensor, Tensor], Tensor]:
    """A network that knows little: half of what it is given, and `other` where it learned a variance."""

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        out = x_t / 2
        return torch.cat([out, torch.full_like(out, other)], 1) if process is PAPER else out

    return predict


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
    together = sample(
        velocity, noise, FlowMatchEulerDiscreteScheduler(), 5, after_step=lambda step: told.append(step.number)
    )
    alone = sample(velocity, noise[1:2], FlowMatchEulerDiscreteScheduler(), 5)
    assert told == [1, 2, 3, 4, 5]
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=0)


def test_a_step_can_be_changed_and_can_be_the_last() -> None:
    def halve(step: Step) -> None:
        step.x = step.x / 2
        step.stop = step.number == 2

    noise, asked = torch.ones(1, 1, 1, 2, 2), list[float]()

    def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(x_t.mean().item())
        return torch.zeros_like(x_t)

    out = sample(predict, noise, FlowMatchEulerDiscreteScheduler(), 5, after_step=halve)
    assert asked == [1.0, 0.5]
    assert torch.equal(out, noise / 4)


def test_the_steps_are_even_and_the_last_one_counts() -> None:
    asked: list[float] = []

    def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(timesteps[0].item())
        return torch.full_like(x_t, 3.0)

    out = sample(predict, torch.zeros(1, 1, 1, 2, 2), FlowMatchEulerDiscreteScheduler(), 4)
    assert asked == [1000.0, 750.0, 500.0, 250.0]
    torch.testing.assert_close(out, torch.full_like(out, -3.0))  # all the way from 1 to 0


@pytest.mark.parametrize("name", samplers_for(FLOW))
@pytest.mark.parametrize("steps", [1, 4, 7])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_asks_at_even_times_of_one_shift_and_every_step_counts(name: str, steps: int, shift: float) -> None:
    asked: list[float] = []
    told: list[int] = []

    def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
        asked.append(timesteps[0].item())
        return torch.full_like(x_t, 3.0)

    options: dict[str, Any] = {"generators": generators([0], 0), "after_step": lambda step: told.append(step.number)}
    out = sample(
        predict, torch.zeros(1, 1, 1, 2, 2), make_scheduler(name, RectifiedFlow(shift=shift)), steps, **options
    )
    t = [1 - i / steps for i in range(steps)]
    shifted = [1000 * shift * t / (1 + (shift - 1) * t) for t in t]
    assert sorted(set(asked), reverse=True) == pytest.approx(shifted, abs=2e-3)
    assert len(asked) == (2 * steps - 1 if name == "heun" else steps)
    assert told == list(range(1, steps + 1))
    if SAMPLERS[name].order is not None or steps == 1:  # the last step draws no noise
        torch.testing.assert_close(out, torch.full_like(out, -3.0), atol=1e-4, rtol=0)  # all the way from 1 to 0


@pytest.mark.parametrize(
    "process", [GaussianDiffusion(betas, "v", zero_terminal_snr=zero) for betas in BETAS for zero in (False, True)]
)
def test_the_schedulers_betas_are_the_process_s(process: GaussianDiffusion) -> None:
    theirs = make_scheduler("ddpm", process).alphas_cumprod.double()
    torch.testing.assert_close(theirs, process.alpha_bar, atol=1e-6, rtol=2e-3)


def test_the_published_step_lists() -> None:
    assert respaced(10) == list(range(999, -1, -111))
    assert respaced(25)[-5:] == [166, 125, 83, 42, 0]
    steps = respaced(250)
    assert (len(steps), steps[0], steps[-1]) == (250, 999, 0)
    assert {a - b for a, b in pairwise(steps)} == {4, 5}
    assert respaced(1000) == list(range(999, -1, -1))
    assert respaced(1) == [999]


@pytest.mark.parametrize(("process", "name"), PAIRS, ids=title)
def test_a_saved_scheduler_samples_the_same(process: Process, name: str, tmp_path: Path) -> None:
    scheduler = make_scheduler(name, process)
    scheduler.save_pretrained(tmp_path)
    out = [
        sample(half(process), NOISE[:2], used, 4, generators=generators(range(2), 0))
        for used in (scheduler, type(scheduler).from_pretrained(tmp_path))
    ]
    assert torch.equal(*out)


@pytest.mark.parametrize("process", [FLOW, PAPER], ids=title)
def test_what_does_not_fit_is_refused_by_name(process: Process) -> None:
    fits = samplers_for(process)
    for name in SAMPLERS.keys() - set(fits):
        with pytest.raises(Refused, match=f"sampler {re.escape(name)} does not fit.*{re.escape(' or '.join(fits))}"):
            make_scheduler(name, process)
    with pytest.raises(Refused, match=f"unknown sampler, got 'plms', expected {re.escape(' or '.join(fits))}"):
        make_scheduler("plms", process)


@pytest.mark.parametrize(("process", "name"), PAIRS, ids=title)
def test_steps_that_cannot_be_are_refused(process: Process, name: str) -> None:
    run = partial(sample, half(process), NOISE[:1], make_scheduler(name, process))
    least = 2 if name == "ddpm" else 1
    for steps in (0, least - 1, *([2000] if isinstance(process, GaussianDiffusion) else [])):
        with pytest.raises(ValueError):
            run(steps, generators=generators([0], 0))
    assert run(least, generators=generators([0], 0)).isfinite().all()


def test_a_network_that_learned_its_variance_changes_nothing_elsewhere() -> None:
    for name in samplers_for(PAPER):
        low, high = (
            sample(half(PAPER, other), NOISE, make_scheduler(name, PAPER), 5, generators=generators(range(3), 0))
            for other in (-1.0, 1.0)
        )
        assert torch.equal(low, high) == (name != "ddpm")
