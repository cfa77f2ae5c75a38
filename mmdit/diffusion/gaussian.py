"""Gaussian diffusion: noise is added in many small steps, and a network predicts what undoes them.

Source: arXiv 2006.11239 (DDPM), 2102.09672 (cosine betas, learned variance), 2202.00512 (v), 2303.09556 (min-SNR),
2305.08891 (zero terminal SNR). Written a_t for the products of (1 - beta), called alpha-bar there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mmdit.diffusion.bound import decoder_nll, normal_kl
from mmdit.diffusion.given import frame_times, hold, mean_of_others
from mmdit.errors import Refused

Predict = Callable[[Tensor, Tensor], Tensor]

BETAS = ("linear", "cosine")
PREDICTIONS = ("epsilon", "v", "x0")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


@dataclass(frozen=True)
class DiffusionLoss:
    """What a training step needs, float32 (batch,), means over all other axes.

    `per_sample` is what is minimised; `mse` the unweighted error of the prediction; `vb` the variational bound's term
    in bits a number, None where the variance is fixed.
    """

    per_sample: Tensor
    mse: Tensor
    vb: Tensor | None


@dataclass(frozen=True)
class GaussianDiffusion:
    """x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise, t = 0 ... timesteps - 1.

    Args:
        betas: "linear" (1e-4 to 0.02 at 1000 timesteps, in proportion at others) or "cosine".
        prediction: what the network gives: "epsilon" (the noise), "x0" (the data), or
            "v" (sqrt(a_t) noise - sqrt(1 - a_t) x_0).
        variance: of a sampling step: "fixed_small", "fixed_large", or "learned_range", for which the network gives
            twice the channels; the second half, in [-1, 1], lies between the logarithms of the other two.
        min_snr: gamma of the min-SNR weighting, None for none. For v and x0 the weight falls to zero with the SNR.
        zero_terminal_snr: rescale the betas so that the last timestep is noise alone; not for epsilon, of which
            nothing of the data can be had there.
        timesteps: how many there are.

    Raises:
        Refused: for unknown names, numbers out of range, and epsilon with zero terminal SNR.
    """

    betas: str = "linear"
    prediction: str = "epsilon"
    variance: str = "learned_range"
    min_snr: float | None = None
    zero_terminal_snr: bool = False
    timesteps: int = 1000

    def __post_init__(self) -> None:
        for what, value, known in (
            ("kind of betas", self.betas, BETAS),
            ("prediction", self.prediction, PREDICTIONS),
            ("variance", self.variance, VARIANCES),
        ):
            if value not in known:
                raise Refused(f"unknown {what} of a Gaussian diffusion", got=repr(value), expected=" or ".join(known))
        if self.min_snr is not None and not self.min_snr > 0:
            raise Refused("gamma of the min-SNR weighting is out of range", got=self.min_snr, expected="above 0")
        if self.timesteps <= 20:
            raise Refused("too few timesteps for betas below 1", got=self.timesteps, expected="more than 20")
        if self.zero_terminal_snr and self.prediction == "epsilon":
            raise Refused(
                "the noise says nothing of the data at zero SNR",
                got="prediction epsilon with zero_terminal_snr",
                expected="v or x0",
            )

    @property
    def beta_range(self) -> tuple[float, float]:
        """First and last of the linear betas."""
        return 0.1 / self.timesteps, 20.0 / self.timesteps

    @cached_property
    def alpha_bar(self) -> Tensor:
        """a_t, float64 (timesteps,) on the CPU, falling."""
        if self.betas == "linear":
            beta = torch.linspace(*self.beta_range, self.timesteps, dtype=torch.float64)
        else:
            grid = torch.arange(self.timesteps + 1, dtype=torch.float64) / self.timesteps
            f = torch.cos((grid + 0.008) / 1.008 * math.pi / 2) ** 2  # eq. 17 of 2102.09672
            beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
        alpha_bar = torch.cumprod(1 - beta, 0)
        if self.zero_terminal_snr:  # algorithm 1 of 2305.08891
            root = alpha_bar.sqrt()
            alpha_bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        return alpha_bar

    @cached_property
    def _posterior(self) -> dict[str, Tensor]:
        """q(x_{t-1} | x_t, x_0): eq. 6 and 7 of 2006.11239. The first variance, 0, takes the second's logarithm."""
        now = self.alpha_bar
        before = torch.cat([torch.ones(1, dtype=now.dtype), now[:-1]])
        beta = 1 - now / before
        small = beta * (1 - before) / (1 - now)
        return {
            "of_x_0": before.sqrt() * beta / (1 - now),
            "of_x_t": (now / before).sqrt() * (1 - before) / (1 - now),
            "log_small": torch.cat([small[1:2], small[1:]]).log(),
            "log_large": beta.log(),
        }

    def draw_times(self, normal: Tensor) -> Tensor:
        """Standard normal numbers to uniform timesteps, int64 of the same shape; the randomness is the caller's."""
        uniform = torch.special.ndtr(normal)
        return (uniform * self.timesteps).long().clamp(max=self.timesteps - 1)

    def from_timesteps(self, timesteps: Tensor) -> Tensor:
        """Times of this process for the timesteps that a network is told: whole numbers."""
        return timesteps.long()

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t for x_0 and noise (batch, ...) and whole timesteps (batch,)."""
        signal, spread = self._signal_and_spread(t, x_0)
        return signal * x_0 + spread * noise  # eq. 4 of 2006.11239

    def target(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network should predict, shaped as x_0."""
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "x0":
            return x_0
        signal, spread = self._signal_and_spread(t, x_0)
        return signal * noise - spread * x_0  # 2202.00512, section 4

    def data_coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q), each (batch, 1, ...): the data that a prediction stands for is p x_t + q prediction."""
        signal, spread = self._signal_and_spread(t, x)
        if self.prediction == "epsilon":
            return 1 / signal, -spread / signal
        if self.prediction == "v":
            return signal, -spread
        return torch.zeros_like(signal), torch.ones_like(signal)

    def weight(self, t: Tensor) -> Tensor:
        """What the squared error of timesteps (batch,) is multiplied by, float32 (batch,)."""
        if self.min_snr is None:
            return torch.ones(t.shape, device=t.device)
        snr = self.alpha_bar / (1 - self.alpha_bar)
        clipped = snr.clamp(max=self.min_snr)
        weight = {"x0": clipped, "epsilon": clipped / snr, "v": clipped / (snr + 1)}[self.prediction]  # 2303.09556
        return self._at(weight, t, t).float()

    def loss(
        self, predict: Predict, x_0: Tensor, noise: Tensor, t: Tensor, given: Tensor | None = None
    ) -> DiffusionLoss:
        """weight x mse, and with a learned variance + vb timesteps / 1000 (L_hybrid of 2102.09672, times 1000).

        predict(x_t, t) is given whole timesteps (batch,); it returns twice the channels of x_0 for "learned_range",
        and as many as x_0 has otherwise. Frames that are `given` (batch, frame) enter as they are, and are not in the
        means; timesteps are then one a frame, (batch, frame).
        """
        x_t = hold(self.add_noise(x_0, noise, t), x_0, given)
        predicted = predict(x_t, frame_times(t, given)).float()
        channels, learned = x_0.shape[1], self.variance == "learned_range"
        if predicted.shape[1] != channels * (1 + learned):
            raise Refused(
                f"the network's output does not fit variance {self.variance}",
                got=f"{predicted.shape[1]} channels",
                expected=f"{channels * (1 + learned)}",
            )
        predicted, between = predicted.split([channels, channels * learned], dim=1)
        mse = mean_of_others((predicted - self.target(x_0, noise, t).float()) ** 2, given)
        weighted = self.weight(t) * mse
        if not learned:
            return DiffusionLoss(weighted, mse, None)
        bound = (predicted.detach(), between, x_0.float(), x_t.float(), t)  # it teaches the variance alone
        vb = self.bound(*bound, given)
        return DiffusionLoss(weighted + vb * self.timesteps / 1000, mse, vb)

    def bound(
        self, predicted: Tensor, between: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor, given: Tensor | None = None
    ) -> Tensor:
        """The term of the variational bound at t, in bits a number, (batch,).

        `between` in [-1, 1] is the learned place between the two fixed log variances. Eq. 3 to 6 and 15 of 2102.09672.
        """
        posterior = {name: self._at(value, t, x_t) for name, value in self._posterior.items()}
        p, q = self.data_coefficients(t, x_t)
        share = (between + 1) / 2
        log_variance = share * posterior["log_large"] + (1 - share) * posterior["log_small"]
        mean = posterior["of_x_0"] * (p * x_t + q * predicted) + posterior["of_x_t"] * x_t
        true_mean = posterior["of_x_0"] * x_0 + posterior["of_x_t"] * x_t
        kl = mean_of_others(normal_kl(true_mean, posterior["log_small"], mean, log_variance), given)
        nll = mean_of_others(decoder_nll(x_0, mean, log_variance), given)
        return torch.where(t == 0, nll, kl) / math.log(2)

    def _signal_and_spread(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(a_t) and sqrt(1 - a_t), each (batch, 1, ...)."""
        return self._at(self.alpha_bar.sqrt(), t, x), self._at((1 - self.alpha_bar).sqrt(), t, x)

    def _at(self, table: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """table[t] as (batch, 1, ...), to be multiplied with x (batch, ...)."""
        if t.shape != x.shape[:1]:
            raise ValueError(
                f"timesteps of shape {tuple(t.shape)} for samples of shape {tuple(x.shape)}: one a sample wanted"
            )
        at = table.float().to(x.device)[t.to(x.device).long()]
        return at.view(-1, *[1] * (x.ndim - 1))
