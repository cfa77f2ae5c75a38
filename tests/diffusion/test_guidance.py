"""Guidance, on predictions that are known."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from mmdit.diffusion import GaussianDiffusion, Guidance, Projection, RectifiedFlow, guided, two_passes
from mmdit.diffusion.gaussian import PREDICTIONS
from mmdit.errors import Refused

PROCESSES = [RectifiedFlow(), *[GaussianDiffusion(prediction=name, variance="fixed_small") for name in PREDICTIONS]]
TITLES = ["velocity", *PREDICTIONS]


class Network:
    """Random but fixed answers, twice the channels of x_t; counts how many samples it was asked about at a time."""

    def __init__(self) -> None:
        self.conditional, self.null = torch.randn(2, 3, 8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        self.asked: list[int] = []

    def both(self, x_t: Tensor, t: Tensor) -> Tensor:
        assert torch.equal(*x_t.chunk(2)) and torch.equal(*t.chunk(2))
        self.asked.append(len(x_t))
        return torch.cat([self.conditional, self.null])

    def answer(self, what: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        assert x_t.shape == (3, 4, 2, 3, 3) and t.shape == (3,)
        self.asked.append(len(x_t))
        return what

    @property
    def alone(self) -> Callable[[Tensor, Tensor], Tensor]:
        return partial(self.answer, self.conditional)

    def guided(self, how: float | Guidance, process: object = None) -> Tensor:
        return guided(self.both, self.alone, how, process)(X_T, T)


X_T = torch.randn(3, 4, 2, 3, 3, generator=torch.Generator().manual_seed(1))
T = torch.tensor([800.0, 500.0, 200.0])
EVERYTHING = Guidance(3.0, 2, (100, 600), 0.7, Projection(0.3, 5.0, -0.5))


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


@pytest.mark.parametrize("channels", [None, 1, 3, 9])
def test_the_channels_asked_for_are_guided_and_a_learned_variance_never(channels: int | None) -> None:
    net = Network()
    out, count = net.guided(Guidance(4.0, channels)), min(channels or 4, 4)
    expected = net.null + 4 * (net.conditional - net.null)
    torch.testing.assert_close(out[:, :count], expected[:, :count])
    assert torch.equal(out[:, count:], net.conditional[:, count:])


@pytest.mark.parametrize("how", [2.5, EVERYTHING], ids=["plain", "everything"])
def test_one_doubled_batch_or_two_passes(how: float | Guidance) -> None:
    net, twice = Network(), Network()
    both = two_passes(twice.alone, partial(twice.answer, twice.null))
    out = guided(both, twice.alone, how, RectifiedFlow())(X_T, T)
    assert torch.equal(out, net.guided(how, RectifiedFlow()))
    assert (net.asked, twice.asked) == ([6], [3, 3])


def test_scale_one_costs_no_second_pass() -> None:
    net = Network()
    for how in (1.0, Guidance(1.0, 2, (0, 1000), 0.7, Projection())):
        assert torch.equal(net.guided(how), net.conditional)
    assert net.asked == [3, 3]


def test_outside_of_the_interval_is_conditional_and_costs_no_second_pass() -> None:
    net, whole = Network(), Network().guided(3.0)
    assert torch.equal(net.guided(Guidance(3.0, interval=(200, 800))), whole)
    assert torch.equal(net.guided(Guidance(3.0, interval=(300, 700)))[1], whole[1])
    for row in (0, 2):
        assert torch.equal(net.guided(Guidance(3.0, interval=(300, 700)))[row], net.conditional[row])
    net.asked.clear()
    assert torch.equal(net.guided(Guidance(3.0, interval=(801, 1000))), net.conditional)
    assert net.asked == [3]


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_rescaling_brings_the_deviation_back(rescale: float) -> None:
    net = Network()
    out, plain = (net.guided(Guidance(6.0, rescale=r))[:, :4].flatten(1) for r in (rescale, 0.0))
    wanted = rescale * net.conditional[:, :4].flatten(1).std(1) + (1 - rescale) * plain.std(1)
    torch.testing.assert_close(out.std(1), wanted)
    torch.testing.assert_close(out / out.std(1, keepdim=True), plain / plain.std(1, keepdim=True))


def data(process: RectifiedFlow | GaussianDiffusion, prediction: Tensor) -> Tensor:
    """(batch, number)"""
    p, q = process.data_coefficients(T, X_T)
    return (p * X_T + q * prediction[:, :4]).flatten(1)


@pytest.mark.parametrize("process", PROCESSES, ids=TITLES)
def test_projected_guidance_acts_on_the_data(process: RectifiedFlow | GaussianDiffusion) -> None:
    net = Network()
    conditional, null = data(process, net.conditional), data(process, net.null)
    out = net.guided(Guidance(5.0, projection=Projection(parallel=1.0)), process)
    torch.testing.assert_close(out, net.guided(5.0), atol=1e-4, rtol=1e-4)  # nothing is taken away

    direction = conditional / conditional.norm(dim=1, keepdim=True)
    for parallel in (0.0, 0.3):
        out = net.guided(Guidance(5.0, projection=Projection(parallel)), process)
        moved = data(process, out) - conditional
        along = ((conditional - null) * direction).sum(1, keepdim=True) * direction
        expected = 4 * (conditional - null - along + parallel * along)
        torch.testing.assert_close(moved, expected, atol=1e-3, rtol=1e-3)

    lengths = (conditional - null).norm(dim=1)
    radius = lengths.median().item()
    out = net.guided(Guidance(5.0, projection=Projection(1.0, radius)), process)
    moved = (data(process, out) - conditional).norm(dim=1) / 4
    torch.testing.assert_close(moved, lengths.clamp(max=radius), atol=1e-3, rtol=1e-3)


def test_momentum_remembers_the_former_steps_of_one_run() -> None:
    net, flow = Network(), RectifiedFlow()
    how = Guidance(2.0, projection=Projection(parallel=1.0, momentum=-0.5))
    predict = guided(net.both, net.alone, how, flow)
    first, second, third = (data(flow, predict(X_T, T)) for _ in range(3))
    conditional, difference = data(flow, net.conditional), data(flow, net.conditional) - data(flow, net.null)
    for out, factor in ((first, 1.0), (second, 0.5), (third, 0.75)):  # d_n = d - d_{n-1} / 2
        torch.testing.assert_close(out, conditional + factor * difference, atol=1e-5, rtol=1e-5)
    higher = predict(X_T, T + 10)  # another run
    fresh = guided(net.both, net.alone, how, flow)(X_T, T + 10)
    assert torch.equal(higher, fresh)


def test_what_cannot_be_is_refused() -> None:
    for wrong in (
        {"channels": 0}, {"interval": (5, 2)}, {"rescale": 1.5}, {"rescale": "1"}, {"rescale": float("nan")},
        {"projection": {"parallel": 0}},
    ):  # fmt: skip
        with pytest.raises(Refused):
            Guidance(2.0, **wrong)
    for bad in ({"radius": 0}, {"momentum": -1}, {"parallel": None}, {"parallel": float("nan")}, {"radius": "15"}):
        with pytest.raises(Refused):
            Projection(**bad)
    with pytest.raises(ValueError, match="needs the process"):
        Network().guided(Guidance(2.0, projection=Projection()))
