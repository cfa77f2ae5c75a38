"""Every process x prediction x sampler that is accepted, on problems with a known answer."""

import math
from collections.abc import Iterator
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from torch import Tensor

from mmdit.diffusion import (
    SAMPLERS,
    GaussianDiffusion,
    RectifiedFlow,
    draws_noise,
    make_scheduler,
    sample,
    samplers_for,
)
from mmdit.diffusion.gaussian import BETAS, PREDICTIONS, VARIANCES
from mmdit.errors import Refused
from mmdit.seeds import generators

Process = GaussianDiffusion | RectifiedFlow

# A mixture of two normal distributions of numbers: shares, means, deviations.
MIXTURE = torch.tensor([[0.3, -1.5, 0.3], [0.7, 1.0, 0.5]], dtype=torch.float64)
NORMAL = torch.tensor([[1.0, 1.5, 0.5]], dtype=torch.float64)


def signal_and_spread(process: Process, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t = signal x_0 + spread noise, at the timesteps that networks see."""
    if isinstance(process, RectifiedFlow):
        return 1 - t / 1000, t / 1000
    a = process.alpha_bar[t.long()]
    return a.sqrt(), (1 - a).sqrt()


def exact(process: Process, data: Tensor, x_t: Tensor, timesteps: Tensor) -> Tensor:
    """What a perfect network says of data that are a mixture, as the process wants it said."""
    x, t = x_t.double(), timesteps.double().view(-1, *[1] * (x_t.ndim - 1))
    signal, spread = signal_and_spread(process, t)
    share, mean, std = data.T.reshape(3, -1, *[1] * x.ndim)
    variance = signal**2 * std**2 + spread**2  # of x_t, by component
    away = x - signal * mean
    weight = torch.softmax(share.log() - variance.log() / 2 - away**2 / variance / 2, 0)
    x_0 = (weight * (mean + signal * std**2 / variance * away)).sum(0)
    noise = (weight * spread / variance * away).sum(0)
    said = {"x0": x_0, "epsilon": noise, "velocity": noise - x_0, "v": signal * noise - spread * x_0}
    out = said[process.prediction].float()
    learned = isinstance(process, GaussianDiffusion) and process.variance == "learned_range"
    return torch.cat([out, torch.zeros_like(out)], 1) if learned else out


def processes() -> Iterator[Process]:
    yield RectifiedFlow()
    yield RectifiedFlow(shift=3.0)
    for betas in BETAS:
        for prediction in PREDICTIONS:
            for zero in (False, True):
                if not (zero and prediction == "epsilon"):
                    yield GaussianDiffusion(betas, prediction, "fixed_small", zero_terminal_snr=zero)
    for variance in VARIANCES[1:]:
        yield GaussianDiffusion(variance=variance)


def title(value: Any) -> str:
    if isinstance(value, RectifiedFlow):
        return f"flow-{value.shift}"
    if isinstance(value, GaussianDiffusion):
        return f"{value.betas}-{value.prediction}-{value.variance}{'-zero' * value.zero_terminal_snr}"
    return str(value)


PAIRS = [(process, name) for process in processes() for name in samplers_for(process)]


@cache
def start() -> Tensor:
    """4096 normal numbers that lie as evenly as can be, in 8 samples."""
    even = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    shuffled = torch.special.ndtri(even)[torch.randperm(4096, generator=torch.Generator().manual_seed(0))]
    return shuffled.float().view(8, 2, 1, 16, 16)


@cache
def quantiles() -> Tensor:
    """The mixture's, at the places of `start`."""
    x = torch.linspace(-5, 5, 100_001, dtype=torch.float64)
    share, mean, std = MIXTURE.T
    below = (share * torch.special.ndtr((x[:, None] - mean) / std)).sum(1)
    even = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096
    return x[torch.searchsorted(below, even)].float()


def distance(process: Process, name: str, steps: int) -> float:
    """Mean distance of what is sampled from the mixture (Wasserstein-1)."""
    out = sample(
        partial(exact, process, MIXTURE),
        start(),
        make_scheduler(name, process),
        steps,
        generators=generators(range(8), 0, "test"),
    )
    return (out.flatten().sort().values - quantiles()).abs().mean().item()


@pytest.mark.parametrize(("process", "name"), PAIRS, ids=title)
def test_more_steps_come_nearer_to_the_mixture(process: Process, name: str) -> None:
    few, more, many = (distance(process, name, steps) for steps in (3, 12, 48))
    assert few > more > many
    assert many < {None: 0.08, 1: 0.04}.get(SAMPLERS[name].order, 0.005)


def test_every_sampler_has_a_process() -> None:
    assert {name for _, name in PAIRS} == set(SAMPLERS)


def on_the_way(process: Process, name: str, steps: int, at: float) -> float:
    """The error of x_t at a place on the way, by what the sampler asks there."""
    asked: dict[float, Tensor] = {}
    noise = start()[:1]

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        asked.setdefault(t[0].item(), x_t)
        return exact(process, NORMAL, x_t, t)

    sample(predict, noise, make_scheduler(name, process), steps)
    first, nearest = max(asked), min(asked, key=lambda t: abs(t - at))
    assert abs(nearest - at) < 1e-3
    return (asked[nearest] - carried(process, noise, first, nearest)).abs().mean().item()


def carried(process: Process, x: Tensor, first: float, last: float) -> Tensor:
    """Where the flow of probability carries x: normal distributions onto each other."""
    _, mean, std = NORMAL[0]
    for t, back in ((first, False), (last, True)):
        signal, spread = signal_and_spread(process, torch.tensor(t, dtype=torch.float64))
        deviation = (signal**2 * std**2 + spread**2).sqrt()
        x = x * deviation + signal * mean if back else (x - signal * mean) / deviation
    return x


# With 1025 timesteps, whole timesteps can be halved often.
ORDERED = [
    (process, name)
    for process in (
        RectifiedFlow(),
        GaussianDiffusion("linear", "v", "fixed_small", timesteps=1025),
        GaussianDiffusion("cosine", "x0", "fixed_small", timesteps=1025),
    )
    for name in samplers_for(process)
    if SAMPLERS[name].order is not None
]


@pytest.mark.parametrize(("process", "name"), ORDERED, ids=title)
def test_half_the_step_is_two_to_the_order_less_error(process: Process, name: str) -> None:
    order = SAMPLERS[name].order
    assert order is not None
    gaussian = isinstance(process, GaussianDiffusion)
    extra = 1 if gaussian and name == "ddim" else 0  # its steps include both ends
    errors = [on_the_way(process, name, n + extra, 512 if gaussian else 500) for n in (16, 32, 64)]
    for error, half in pairwise(errors):
        if half > 1e-5:  # below, float32 is what is seen
            measured = math.log2(error / half)
            assert measured > order - 0.3
            assert measured < order + 0.3 or order == 3


RANDOM = [(p, name) for p in (RectifiedFlow(), GaussianDiffusion()) for name in samplers_for(p)]


@pytest.mark.parametrize(("process", "name"), RANDOM, ids=title)
def test_a_sample_does_not_depend_on_its_batch(process: Process, name: str) -> None:
    scheduler = make_scheduler(name, process)
    predict = partial(exact, process, MIXTURE)
    noise = start()[:3]

    def run(rows: range) -> Tensor:
        return sample(predict, noise[rows.start : rows.stop], scheduler, 5, generators=generators(rows, 7, "steps"))

    together = run(range(3))
    torch.testing.assert_close(run(range(1, 2)), together[1:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(run(range(1, 3)), together[1:], atol=1e-5, rtol=0)
    assert draws_noise(scheduler) == (SAMPLERS[name].order is None)
    if draws_noise(scheduler):
        other = sample(predict, noise, scheduler, 5, generators=generators(range(3), 8, "steps"))
        assert (other - together).abs().mean() > 0.01
        for wrong in (None, generators(range(2), 7)):
            with pytest.raises(ValueError, match="3 generators wanted"):
                sample(predict, noise, scheduler, 5, generators=wrong)


@pytest.mark.parametrize(
    "kind", [EulerDiscreteScheduler, HeunDiscreteScheduler, EulerAncestralDiscreteScheduler], ids=lambda k: k.__name__
)
def test_other_schedulers_of_diffusers_work_too(kind: Any) -> None:
    """Those that scale what they hold, and hand the network what it knows."""
    process = GaussianDiffusion("linear", "epsilon", "fixed_small")
    start_beta, end_beta = process.beta_range
    scheduler = kind(beta_start=start_beta, beta_end=end_beta, beta_schedule="linear")
    far = []
    for steps in (3, 12, 48):
        predict = partial(exact, process, MIXTURE)
        out = [sample(predict, start(), scheduler, steps, generators=generators(range(8), 0)) for _ in range(2)]
        assert torch.equal(*out)
        far.append((out[0].flatten().sort().values - quantiles()).abs().mean().item())
    assert far[0] > far[1] > far[2]
    assert far[2] < 0.08


def test_diffusers_ddim_only_where_it_is_right() -> None:
    process = GaussianDiffusion("cosine", "v", "fixed_small")
    run = partial(sample, partial(exact, process, MIXTURE), start()[:1])
    settings = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "clip_sample": False}
    even = run(DDIMScheduler(**settings), 50)
    assert (even - run(make_scheduler("ddim", process), 50)).abs().mean() < 0.05
    for uneven in ({"timestep_spacing": "linspace"}, {"timestep_spacing": "trailing"}):
        with pytest.raises(Refused, match="use sampler ddim"):
            run(DDIMScheduler(**settings, **uneven), 30)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("process", "name"), RANDOM, ids=title)
def test_a_gpu_samples_the_same(process: Process, name: str) -> None:
    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        return exact(process, MIXTURE, x_t.cpu(), t.cpu()).to(x_t.device)

    cpu, gpu = (
        sample(predict, start()[:2].to(device), make_scheduler(name, process), 6, generators=generators(range(2), 0))
        for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(gpu.cpu(), cpu, atol=1e-4, rtol=0)
