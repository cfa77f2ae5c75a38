"""The flow's equations, by closed forms."""

import pytest
import torch
from torch import Tensor

from mmdit.diffusion import RectifiedFlow
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


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match="distribution of times"):
        RectifiedFlow("normal")
    with pytest.raises(Refused, match="got 0"):
        RectifiedFlow(shift=0)
    with pytest.raises(ValueError, match="one a sample"):
        RectifiedFlow().add_noise(torch.zeros(2, 1, 1, 1, 1), torch.zeros(2, 1, 1, 1, 1), torch.zeros(3))
