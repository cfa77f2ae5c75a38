"""Euler-Maruyama for flow: the stochastic equation that has the flow's distributions. Source: arXiv 2401.08740."""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class FlowMatchEulerMaruyamaScheduler(SchedulerMixin, ConfigMixin):
    """dx = (v - w_t score / 2) dt + sqrt(w_t) dW from t = 1 to 0, with w_t = t; the last step draws no noise.

    Args:
        num_train_timesteps: the timestep of t = 1.
        shift: t' = shift t / (1 + (shift - 1) t) of even steps.
    """

    order = 1

    @register_to_config
    def __init__(self, num_train_timesteps: int = 1000, shift: float = 1.0) -> None:
        self.init_noise_sigma = 1.0
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Even steps from t = 1 to 0, shifted."""
        t = torch.linspace(1, 0, num_inference_steps + 1)
        self.sigmas = self.config.shift * t / (1 + (self.config.shift - 1) * t)  # on the CPU, (steps + 1,)
        self.timesteps = (self.sigmas[:-1] * self.config.num_train_timesteps).to(device)
        self._number = 0

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """As it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:
        """One step along the velocity `model_output`; the steps are taken in the order of `timesteps`."""
        t, after = self.sigmas[self._number].item(), self.sigmas[self._number + 1].item()
        self._number += 1
        step = t - after
        x = sample - step * model_output
        if after > 0:
            noise = sample + (1 - t) * model_output  # E[noise | x_t]; the score is -noise / t
            fresh = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            x = x - 0.5 * step * noise + (t * step) ** 0.5 * fresh
        return SchedulerOutput(prev_sample=x) if return_dict else (x,)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)
