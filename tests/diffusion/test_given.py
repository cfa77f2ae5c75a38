"""Given frames in the losses: as if the clip consisted of the others alone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.diffusion import GaussianDiffusion, RectifiedFlow

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
