"""Given frames: in the losses as if the clip consisted of the others alone, in sampling as they are."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.diffusion import (
    GaussianDiffusion,
    Given,
    Guidance,
    RectifiedFlow,
    guided,
    guided_by_given,
    make_scheduler,
    sample,
    samplers_for,
)
from mmdit.diffusion.given import frame_times, hold
from mmdit.seeds import generators

PROCESSES = [
    RectifiedFlow(),
    GaussianDiffusion(),
    GaussianDiffusion(prediction="v", variance="fixed_small", min_snr=5.0),
]


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_the_loss_is_that_of_the_other_frames(process: Any) -> None:
    random = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(2, 3, 5, 4, 4, generator=random) for _ in range(2))
    t = process.draw_times(torch.randn(2, generator=random))
    given = torch.tensor([[True, False, False, True, False], [False] * 5])
    double = isinstance(process, GaussianDiffusion) and process.variance == "learned_range"
    seen = []

    def predict(x_t: Tensor, times: Tensor) -> Tensor:
        seen.append(times)
        return torch.cat([x_t * 0.3] * (1 + double), dim=1).clamp(-1, 1)

    whole = process.loss(predict, x_0, noise, t, given).per_sample
    others = process.loss(predict, x_0[:1, :, ~given[0]], noise[:1, :, ~given[0]], t[:1]).per_sample
    second = process.loss(predict, x_0[1:], noise[1:], t[1:]).per_sample
    torch.testing.assert_close(whole, torch.cat([others, second]))
    assert torch.equal(seen[0] == 0, given)
    assert (seen[0][1] == seen[2][0]).all()


def knows_given(process: Any, given: Tensor, x_t: Tensor, times: Tensor) -> Tensor:
    """Predicts as if each frame were as the given ones that it is shown: exact where all frames of a clip are alike."""
    x_0 = (x_t * given[:, None, :, None, None]).sum(2, keepdim=True) / given.sum(1).view(-1, 1, 1, 1, 1)
    time = times.amax(1)
    if isinstance(process, RectifiedFlow):
        return (x_t - x_0) / (time / 1000).view(-1, 1, 1, 1, 1)
    signal = process.alpha_bar[time].float().view(-1, 1, 1, 1, 1)
    return (x_t - signal.sqrt() * x_0) / (1 - signal).sqrt()


FIXED = GaussianDiffusion(variance="fixed_small")


@pytest.mark.parametrize(
    ("process", "name"),
    [(process, name) for process in (RectifiedFlow(shift=3.0), FIXED) for name in samplers_for(process)],
    ids=str,
)
def test_every_sampler_shows_given_frames_as_they_are_and_keeps_them(process: Any, name: str) -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 3, 5, 4, 4, generator=random)
    frame = torch.randn(2, 3, 1, 4, 4, generator=random).expand_as(noise)
    mask = torch.tensor([[True, False, False, False, False], [False, True, False, False, True]])
    given = Given(mask, torch.where(mask[:, None, :, None, None], frame, torch.nan))  # the rest is not looked at
    told = []

    def predict(x_t: Tensor, times: Tensor) -> Tensor:
        told.append(torch.equal(times, times.amax(1, keepdim=True) * ~mask))
        return knows_given(process, mask, x_t, times)

    made = sample(
        predict, noise, make_scheduler(name, process), 7, generators=generators(range(2), 0, "step"), given=given
    )
    assert all(told)
    kept = mask[:, None, :, None, None].expand_as(made)
    assert torch.equal(made[kept], frame[kept])
    torch.testing.assert_close(made, frame, atol=2e-3, rtol=0)


@pytest.mark.parametrize("process", [RectifiedFlow(), FIXED], ids=repr)
def test_image_guidance_leads_away_from_what_is_made_without_given_frames(process: Any) -> None:
    random = torch.Generator().manual_seed(0)
    x_0, noise, weight = (torch.randn(1, 2, 3, 2, 2, generator=random) for _ in range(3))
    given = Given(torch.tensor([[True, False, False]]), x_0)
    timesteps = torch.tensor([600])
    x_t = hold(process.add_noise(x_0, noise, process.from_timesteps(timesteps)), x_0, given.mask)
    times = frame_times(timesteps, given.mask)
    asked = []

    def predict(x_t: Tensor, times: Tensor) -> Tensor:
        asked.append((x_t, times))
        return x_t * weight + times[:, None, :, None, None]

    assert guided_by_given(predict, predict, given, noise, process, 1.0) is predict
    made = guided_by_given(predict, predict, given, noise, process, 2.5)(x_t, times)
    free = process.add_noise(x_0, noise, process.from_timesteps(timesteps))
    held, without = predict(x_t, times), predict(free, timesteps[:, None].expand(1, 3))
    torch.testing.assert_close(made, held + 1.5 * (held - without))
    assert [len(x) for x, _ in asked[:2]] == [2, 1]


def test_an_interval_of_guidance_goes_by_the_time_of_the_other_frames() -> None:
    asked = []

    def both(x_t: Tensor, times: Tensor) -> Tensor:
        asked.append(times)
        return torch.cat([x_t[:1], x_t[1:] * 0])

    predict = guided(both, lambda x_t, times: x_t, Guidance(3.0, interval=(500, 1000)))
    x_t = torch.ones(1, 1, 2, 1, 1)
    assert (predict(x_t, torch.tensor([[0, 600]])) == 3).all()
    assert (predict(x_t, torch.tensor([[0, 400]])) == 1).all()
    assert len(asked) == 1
