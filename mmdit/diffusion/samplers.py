"""The samplers by name: which diffusers scheduler, with which settings, walks back which process."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from mmdit.diffusion.flow import TIMESTEPS, RectifiedFlow
from mmdit.diffusion.gaussian import GaussianDiffusion
from mmdit.diffusion.maruyama import FlowMatchEulerMaruyamaScheduler
from mmdit.errors import Refused

Process = GaussianDiffusion | RectifiedFlow


@dataclass(frozen=True)
class Sampler:
    """One way to sample.

    `order`: half the step, 2^order less error; None for those that draw noise in each step.
    `gaussian`, `flow`: the scheduler for such a process; None where there is none.
    """

    order: int | None
    gaussian: Callable[[GaussianDiffusion], Any] | None = None
    flow: Callable[[RectifiedFlow], Any] | None = None


def make_scheduler(name: str, process: Process) -> Any:
    """The diffusers scheduler of a sampler, set up for what a network of this process predicts.

    Raises:
        Refused: for an unknown sampler, or one that the process has no use for; it lists those that fit.
    """
    fits = samplers_for(process)
    if not isinstance(name, str) or name not in SAMPLERS:
        raise Refused("unknown sampler", got=repr(name), expected=" or ".join(fits))
    if name not in fits:
        what = f"{type(process).__name__} predicting {process.prediction}"
        raise Refused(f"sampler {name} does not fit the process", got=what, expected=" or ".join(fits))
    return getattr(SAMPLERS[name], _kind(process))(process)


def samplers_for(process: Process) -> list[str]:
    """The names of the samplers that fit."""
    return [name for name, sampler in SAMPLERS.items() if getattr(sampler, _kind(process)) is not None]


def _kind(process: Process) -> str:
    return "flow" if isinstance(process, RectifiedFlow) else "gaussian"


def _ddpm(process: GaussianDiffusion) -> Any:
    # clipping is for pixels in [-1, 1]; latents are not
    variance = {"variance_type": process.variance, "clip_sample": False, "timestep_spacing": "linspace"}
    return DDPMScheduler(**_betas(process), **variance)


def _dpm(order: int, algorithm: str = "dpmsolver++") -> Callable[[GaussianDiffusion], Any]:
    settings = {"solver_order": order, "algorithm_type": algorithm}
    return lambda process: DPMSolverMultistepScheduler(**_betas(process), **settings)


def _flow_dpm(algorithm: str = "dpmsolver++") -> Callable[[RectifiedFlow], Any]:
    return lambda process: DPMSolverMultistepScheduler(**_line(process), algorithm_type=algorithm)


def _betas(process: GaussianDiffusion) -> dict[str, Any]:
    """The process in the words of diffusers."""
    start, end = process.beta_range
    return {
        "num_train_timesteps": process.timesteps,
        "beta_start": start,
        "beta_end": end,
        "beta_schedule": {"linear": "linear", "cosine": "squaredcos_cap_v2"}[process.betas],
        "prediction_type": {"epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}[process.prediction],
        "rescale_betas_zero_snr": process.zero_terminal_snr,
    }


def _line(process: RectifiedFlow) -> dict[str, Any]:
    """The flow in the words of diffusers' solvers for both."""
    return {
        "num_train_timesteps": TIMESTEPS,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": process.shift,
    }


SAMPLERS: dict[str, Sampler] = {
    "ddpm": Sampler(None, gaussian=_ddpm),
    # DDIM without noise is DPM-Solver++ of first order (2211.01095); diffusers' own takes steps of unlike length wrong
    "ddim": Sampler(1, gaussian=_dpm(1)),
    "dpm++2m": Sampler(2, gaussian=_dpm(2), flow=_flow_dpm()),
    "dpm++2m-sde": Sampler(None, gaussian=_dpm(2, "sde-dpmsolver++"), flow=_flow_dpm("sde-dpmsolver++")),
    "unipc": Sampler(
        3,  # the predictor's two, and one of the corrector
        gaussian=lambda process: UniPCMultistepScheduler(**_betas(process)),
        flow=lambda process: UniPCMultistepScheduler(**_line(process)),
    ),
    "euler": Sampler(1, flow=lambda process: FlowMatchEulerDiscreteScheduler(shift=process.shift)),
    "heun": Sampler(2, flow=lambda process: FlowMatchHeunDiscreteScheduler(shift=process.shift)),
    "euler-maruyama": Sampler(None, flow=lambda process: FlowMatchEulerMaruyamaScheduler(shift=process.shift)),
}
