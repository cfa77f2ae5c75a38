"""The flow's equations, by closed forms."""

import pytest
import torch
from torch import Tensor

from mmdit.diffusion import RectifiedFlow, shift_for_tokens
from mmdit.errors import Refused


def test_the_path_runs_straight_from_data_to_noise() -> None:
    x_0, noise = torch.randn(2, 3, 4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    flow = RectifiedFlow()
    assert torch.equal(flow.add_noise(x_0, noise, torch.zeros(3)), x_0)
    assert torch.equal(flow.add_noise(x_0, noise, torch.ones(3)), noise)
    t = torch.tensor([0.2, 0.5, 0.9])
    step = 1e-3
    slope = (flow.add_noise(x_0, noise, t + step) - flow.add_noise(x_0, noise, t)) / step
    torch.testing.assert_close(slope, flow.velocity(x_0, noise), atol=2e-3, rtol=2e-3)


def test_the_loss_is_the_error_of_the_velocity_and_timesteps_go_to_1000() -> None:
    x_0, noise = torch.randn(2, 3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t, seen = torch.tensor([0.1, 0.5, 0.75]), []

    def predict(x_t: Tensor, timesteps: Tensor) -> Tensor:
        seen.append(timesteps)
        return noise - x_0 + torch.tensor([0.0, 1.0, 2.0]).view(-1, 1, 1, 1, 1)

    loss = RectifiedFlow().loss(predict, x_0, noise, t).per_sample
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0]))
    torch.testing.assert_close(seen[0], torch.tensor([100.0, 500.0, 750.0]))


@pytest.mark.parametrize("times", ["logit-normal", "uniform"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_times_have_the_distribution_asked_for(times: str, shift: float) -> None:
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    t = RectifiedFlow(times, shift).draw_times(normal)
    assert t.min() > 0 and t.max() < 1
    unshifted = t / (shift - (shift - 1) * t)
    expected = {
        "uniform": [0.1, 0.5, 0.9],
        "logit-normal": torch.sigmoid(torch.tensor([-1.2816, 0.0, 1.2816])).tolist(),
    }
    assert torch.quantile(unshifted[:100_000], torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx(
        expected[times], abs=0.01
    )


def test_logit_normal_times_have_the_mean_and_scale_asked_for() -> None:
    normal = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    t = RectifiedFlow(mean=0.5, scale=2.0).draw_times(normal)
    torch.testing.assert_close(torch.logit(t), 0.5 + 2.0 * normal)


@pytest.mark.parametrize("mode", [-1.0, 0.0, 0.8, 1.29, 1.75])
def test_mode_times_are_denser_in_the_middle_by_as_much_as_asked(mode: float) -> None:
    even = torch.linspace(1e-6, 1 - 1e-6, 100_001, dtype=torch.float64)
    t = RectifiedFlow("mode", mode=mode).draw_times(torch.special.ndtri(even))
    assert 0 < t.min() < 1e-4 and 1 - 1e-4 < t.max() < 1
    slope = t.diff().abs() / even.diff()  # the density of times is 1 / slope
    middle, ends = 1 / slope[50_000], 1 / slope[[0, -1]]
    # the derivative of eq. 20: 1 + s (1 - pi / 2 sin(pi u))
    assert middle.item() == pytest.approx(1 / (1 + mode * (1 - torch.pi / 2)), rel=1e-3)
    assert ends.tolist() == pytest.approx([1 / (1 + mode)] * 2 if mode > -1 else ends.tolist(), rel=1e-3)
    torch.testing.assert_close(t.flip(0), 1 - t, atol=1e-9, rtol=0)


def test_the_shift_grows_with_the_tokens() -> None:
    assert [shift_for_tokens(n) for n in (64, 256, 1024, 4096)] == [0.5, 1.0, 2.0, 4.0]
    assert shift_for_tokens(400, base_tokens=100) == 2.0
    with pytest.raises(Refused, match="token count"):
        shift_for_tokens(0)


def test_a_velocity_stands_for_data() -> None:
    x_0, noise = torch.randn(2, 3, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.1, 0.5, 0.75])
    flow = RectifiedFlow()
    x_t = flow.add_noise(x_0, noise, t)
    p, q = flow.data_coefficients(1000 * t, x_t)
    torch.testing.assert_close(p * x_t + q * flow.velocity(x_0, noise), x_0, atol=1e-6, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match="distribution of times"):
        RectifiedFlow("normal")
    with pytest.raises(Refused, match="got 0"):
        RectifiedFlow(shift=0)
    with pytest.raises(Refused, match="the scale of times"):
        RectifiedFlow(scale=0)
    with pytest.raises(Refused, match="the mode of times"):
        RectifiedFlow("mode", mode=2)
    with pytest.raises(Refused, match="a setting of logit-normal times, got uniform"):
        RectifiedFlow("uniform", mean=1)
    with pytest.raises(Refused, match="a setting of mode times, got logit-normal"):
        RectifiedFlow(mode=0.5)
    with pytest.raises(ValueError, match="one a sample"):
        RectifiedFlow().add_noise(torch.zeros(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1), torch.zeros(3))
