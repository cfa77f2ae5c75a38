"""The Gaussian diffusion's equations, by closed forms."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mmdit.diffusion import GaussianDiffusion
from mmdit.diffusion.bound import decoder_nll, normal_kl
from mmdit.diffusion.gaussian import BETAS, PREDICTIONS, VARIANCES
from mmdit.errors import Refused

T = torch.tensor([0, 1, 400, 999])


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    x_0, noise, error = torch.randn(3, 4, 2, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    return x_0, noise, error


def constant(out: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x_t, t: out


@pytest.mark.parametrize("betas", BETAS)
def test_noise_rises_to_almost_all(betas: str) -> None:
    a = GaussianDiffusion(betas).alpha_bar
    assert (a.diff() < 0).all() and a[0] > 0.999 and 0 < a[-1] < 1e-4
    x_0, noise, _ = drawn()
    x_t = GaussianDiffusion(betas).add_noise(x_0, noise, T)
    for row, t in enumerate(T):
        torch.testing.assert_close(x_t[row], (a[t].sqrt() * x_0[row] + (1 - a[t]).sqrt() * noise[row]).float())


def test_the_betas_are_the_papers() -> None:
    linear, cosine = (GaussianDiffusion(betas).alpha_bar for betas in ("linear", "cosine"))
    assert linear[0].item() == pytest.approx(1 - 1e-4, abs=1e-12)
    assert (linear[-1] / linear[-2]).item() == pytest.approx(1 - 0.02, abs=1e-12)
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 501)]
    assert cosine[500].item() == pytest.approx(f[1] / f[0], abs=1e-12)
    assert (cosine[-1] / cosine[-2]).item() == pytest.approx(0.001, abs=1e-9)
    few = GaussianDiffusion(timesteps=100).alpha_bar
    assert few[-1].log().item() == pytest.approx(linear[-1].log().item(), rel=0.15)


@pytest.mark.parametrize("betas", BETAS)
def test_zero_terminal_snr(betas: str) -> None:
    plain = GaussianDiffusion(betas, "v").alpha_bar
    zero = GaussianDiffusion(betas, "v", zero_terminal_snr=True).alpha_bar
    assert zero[-1] == 0 and (zero.diff() < 0).all()
    assert zero[0].item() == pytest.approx(plain[0].item(), abs=1e-12)
    root = zero.sqrt()  # the roots are rescaled along a line
    slope = root.diff() / plain.sqrt().diff()
    torch.testing.assert_close(slope, slope[:1].expand_as(slope), atol=0, rtol=1e-6)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(
    ("prediction", "zero"), [*[(name, False) for name in PREDICTIONS], *[(name, True) for name in ("v", "x0")]]
)
def test_a_perfect_prediction_has_no_error_and_stands_for_the_data(prediction: str, variance: str, zero: bool) -> None:
    process = GaussianDiffusion("linear", prediction, variance, zero_terminal_snr=zero)
    x_0, noise, _ = drawn()
    target, x_t = process.target(x_0, noise, T), process.add_noise(x_0, noise, T)
    p, q = process.data_coefficients(T, x_t)
    torch.testing.assert_close(p * x_t + q * target, x_0, atol=1e-3, rtol=0)
    learned = variance == "learned_range"
    out = torch.cat([target, torch.full_like(target, -1.0)], 1) if learned else target
    loss = process.loss(constant(out), x_0, noise, T)
    assert (loss.mse == 0).all()
    if learned:  # with the posterior's own variance, the true step: no divergence; t = 0 decodes instead
        assert loss.vb is not None and loss.vb[0] > 0.01
        torch.testing.assert_close(loss.vb[1:], torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(loss.per_sample, loss.vb)
    else:
        assert loss.vb is None and (loss.per_sample == 0).all()


def test_the_error_of_a_prediction() -> None:
    x_0, noise, error = drawn()
    process = GaussianDiffusion(variance="fixed_large")
    loss = process.loss(constant(noise + error), x_0, noise, T)
    torch.testing.assert_close(loss.mse, (error**2).mean((1, 2, 3, 4)))
    assert torch.equal(loss.mse, loss.per_sample)


def test_the_bound_teaches_the_variance_alone() -> None:
    x_0, noise, error = drawn()
    mean, between = (noise + error).requires_grad_(), torch.zeros_like(noise).requires_grad_()
    loss = GaussianDiffusion().loss(constant(torch.cat([mean, between], 1)), x_0, noise, T)
    of_mean, of_variance = torch.autograd.grad(loss.per_sample.sum(), [mean, between])
    torch.testing.assert_close(of_mean, 2 * error / error[0].numel())
    assert (of_variance != 0).all()


@pytest.mark.parametrize("timesteps", [500, 1000])
def test_the_bound_by_hand(timesteps: int) -> None:
    """KL of normal distributions by torch, from Bayes' rule; and the weight of the term."""
    process = GaussianDiffusion(timesteps=timesteps)
    x_0, noise, error = drawn()
    t = 300
    between = 0.4 * torch.ones_like(noise)
    loss = process.loss(constant(torch.cat([noise + error, between], 1)), x_0, noise, torch.full((4,), t))
    now, before = process.alpha_bar[t], process.alpha_bar[t - 1]
    beta = 1 - now / before
    precision = 1 / (1 - before) + (now / before) / beta  # of x_{t-1}, given x_0 and x_t
    x_t = now.sqrt() * x_0.double() + (1 - now).sqrt() * noise

    def mean(data: Tensor) -> Tensor:
        return (before.sqrt() / (1 - before) * data + (now / before).sqrt() / beta * x_t) / precision

    data = (x_t - (1 - now).sqrt() * (noise + error)) / now.sqrt()
    variance = torch.exp(0.7 * beta.log() + 0.3 * (1 / precision).log())
    true = torch.distributions.Normal(mean(x_0.double()), precision.rsqrt())
    kl = torch.distributions.kl_divergence(true, torch.distributions.Normal(mean(data), variance.sqrt()))
    assert loss.vb is not None
    torch.testing.assert_close(loss.vb.double(), kl.mean((1, 2, 3, 4)) / math.log(2), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss.per_sample, loss.mse + loss.vb * timesteps / 1000)


@pytest.mark.parametrize("between", [-1.0, 0.0, 1.0])
def test_the_last_step_decodes(between: float) -> None:
    """At t = 0 the mean is the data predicted, and the smallest variance is that of t = 1."""
    process = GaussianDiffusion(prediction="x0")
    out = torch.tensor([0.3, between]).view(1, 2, 1, 1, 1)
    x_0, t = torch.full((1, 1, 1, 1, 1), 0.32), torch.tensor([0])
    vb = process.loss(constant(out), x_0, torch.zeros_like(x_0), t).vb
    a, b = process.alpha_bar[:2]
    smallest, beta = (1 - b / a) * (1 - a) / (1 - b), 1 - a
    variance = torch.exp((1 + between) / 2 * beta.log() + (1 - between) / 2 * smallest.log())
    normal = torch.distributions.Normal(0.3, variance.sqrt())
    bin_ = normal.cdf(torch.tensor(0.32 + 1 / 255)) - normal.cdf(torch.tensor(0.32 - 1 / 255))
    assert vb is not None
    assert vb.item() == pytest.approx(-bin_.log2().item(), abs=0.02)


def test_the_decoder_shares_out_all_probability() -> None:
    pixels = torch.linspace(-1, 1, 256)
    for mean, log_variance in ((0.3, -5.0), (-0.99, -2.0), (0.9, -7.0)):
        probability = torch.exp(-decoder_nll(pixels, torch.tensor(mean), torch.tensor(log_variance)))
        assert probability.sum().item() == pytest.approx(1, abs=1e-4)
        assert abs(pixels[probability[1:-1].argmax() + 1].item() - mean) < 0.01
    assert normal_kl(*torch.tensor([1.0, 0.0, 0.0, 0.0])).item() == pytest.approx(0.5)


def test_min_snr_weighs_one_denoiser_alike_however_it_predicts() -> None:
    x_0, noise, error = drawn()
    losses = []
    for prediction in PREDICTIONS:
        process = GaussianDiffusion(prediction=prediction, variance="fixed_small", min_snr=5.0)
        _, q = process.data_coefficients(T, x_0)
        out = process.target(x_0, noise, T) + error / q  # all of them stand for x_0 + error
        losses.append(process.loss(constant(out), x_0, noise, T).per_sample)
    snr = process.alpha_bar[T] / (1 - process.alpha_bar[T])
    expected = snr.clamp(max=5).float() * (error**2).mean((1, 2, 3, 4))
    for loss in losses:
        torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-4)


def test_timesteps_are_drawn_evenly() -> None:
    process = GaussianDiffusion()
    even = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    assert torch.equal(process.draw_times(torch.special.ndtri(even)).bincount(), torch.full((1000,), 10))
    assert process.draw_times(torch.tensor([-9.0, 9.0])).tolist() == [0, 999]


@pytest.mark.parametrize("field", ["betas", "prediction", "variance"])
def test_unknown_names_are_refused(field: str) -> None:
    with pytest.raises(Refused, match="got 'sigmoid'"):
        replace(GaussianDiffusion(), **{field: "sigmoid"})


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match="zero SNR"):
        GaussianDiffusion(zero_terminal_snr=True)
    with pytest.raises(Refused, match="got 0"):
        GaussianDiffusion(min_snr=0)
    with pytest.raises(Refused, match="more than 20"):
        GaussianDiffusion(timesteps=20)
    x_0, noise, _ = drawn()
    with pytest.raises(Refused, match="got 2 channels, expected 4"):
        GaussianDiffusion().loss(constant(noise), x_0, noise, T)
    with pytest.raises(Refused, match="got 4 channels, expected 2"):
        GaussianDiffusion(variance="fixed_small").loss(constant(torch.cat([noise, noise], 1)), x_0, noise, T)
    with pytest.raises(ValueError, match="one a sample"):
        GaussianDiffusion().add_noise(x_0, noise, T[:3])
