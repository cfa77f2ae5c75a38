"""The sampling loop: a diffusers scheduler steps along what a callable predicts."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdit.diffusion.given import Given, frame_times, hold
from mmdit.errors import Refused

Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass
class Step:
    """A finished step of `sample`, which whoever is told of it may change.

    `number` is from 1; `x` (batch, ...) is what the next step begins with, or what comes out after the last one; `stop`
    leaves the other steps out.
    """

    number: int
    timestep: Tensor
    x: Tensor
    stop: bool = False


def sample(
    predict: Predict,
    noise: Tensor,
    scheduler: Any,
    steps: int,
    *,
    generators: Sequence[torch.Generator] | None = None,
    after_step: Callable[[Step], None] | None = None,
    given: Given | None = None,
) -> Tensor:
    """From noise (batch, ...) to x_0, float32 throughout.

    Args:
        predict: x_t and timesteps (batch,) to what the scheduler expects of a network (for flow, the velocity). Of an
            output with twice the channels, the learned variance goes to the schedulers that read one.
        scheduler: a diffusers scheduler (`make_scheduler`, or any); its steps are set here.
        steps: how many times `predict` is asked (schedulers of higher order ask more often).
        generators: one a sample, for the schedulers that draw noise, which need them: what is drawn for a sample then
            does not depend on the batch it is in (`mmdit.seeds.generators`).
        after_step: called with each finished step, which it may change.
        given: frames that are known. They are shown to `predict` as they are, with timestep 0, and come out as they
            are; `predict` is then called with a timestep a frame, (batch, frame).

    Raises:
        Refused: for a number of steps that the scheduler cannot take.
    """
    _set_timesteps(scheduler, steps, noise.device)
    drawing = _drawing(scheduler, generators, len(noise))
    x, finished = noise.float() * getattr(scheduler, "init_noise_sigma", 1.0), 0
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    mask, known = (None, x) if given is None else (given.mask.to(x.device), given.latents.to(x))
    for number, t in enumerate(scheduler.timesteps, start=1):
        predicted = predict(hold(scaled(x, t), known, mask), frame_times(t.expand(len(x)), mask)).float()
        if not _reads_variance(scheduler):
            predicted = predicted[:, : x.shape[1]]
        x = scheduler.step(predicted, t, x, return_dict=False, **drawing)[0]
        if getattr(scheduler, "state_in_first_order", True) or number == len(scheduler.timesteps):  # not half a step
            finished += 1
            if after_step is not None:
                step = Step(finished, t, hold(x, known, mask))
                after_step(step)
                x = step.x
                if step.stop:
                    break
    return hold(x, known, mask)


def respaced(steps: int, timesteps: int = 1000) -> list[int]:
    """`steps` of the timesteps, falling, as even as whole numbers are, from the last one to 0 (2102.09672, 4)."""
    if steps == 1:
        return [timesteps - 1]
    return [int(t) for t in np.linspace(0, timesteps - 1, steps).round()[::-1]]


def _set_timesteps(scheduler: Any, steps: int, device: torch.device) -> None:
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    least = 2 if name == "DDPMScheduler" else 1  # one step of it would end in noise
    if steps < least:
        raise Refused("too few steps to sample in", where=name, got=steps, expected=f"{least} or more")
    if config.get("use_flow_sigmas") or name.startswith("FlowMatch"):
        _set_flow_times(scheduler, steps, device)
        return
    if hasattr(scheduler, "betas") and not config.get("rescale_betas_zero_snr"):
        scheduler.alphas_cumprod = torch.cumprod(1 - scheduler.betas.double(), 0)  # a thousand factors
    if config.get("solver_order") == 1 and name == "DPMSolverMultistepScheduler":
        scheduler.set_timesteps(timesteps=respaced(steps, config["num_train_timesteps"]), device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    gaps = -scheduler.timesteps.diff()
    if getattr(scheduler, "order", 1) == 1 and len(gaps) and gaps.min() <= 0:
        raise Refused("more steps than there are timesteps", where=name, got=steps)
    if name == "DDIMScheduler" and len(gaps) and (gaps != config["num_train_timesteps"] // steps).any():
        # it takes every step for one of this length
        raise Refused("DDIMScheduler takes steps of unlike length wrong", got=f"{steps} steps", fix="use sampler ddim")


def _set_flow_times(scheduler: Any, steps: int, device: torch.device) -> None:
    """Even times from 1 to 0, shifted. Left to themselves, diffusers' schedulers walk to t = 0.001 in one step less
    and do nothing in the last one, shift twice, begin at 0.999, or tell the network whole timesteps only."""
    times = torch.linspace(1, 1 / steps, steps)
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        scheduler.set_timesteps(sigmas=times.numpy(), device=device)
        scheduler.timesteps = scheduler.sigmas[:steps].to(device) * scheduler.config.num_train_timesteps
        return
    scheduler.set_timesteps(steps, device=device)
    shift = scheduler.config.get("flow_shift") or scheduler.config.shift
    times = shift * times / (1 + (shift - 1) * times)
    scheduler.timesteps = (times * scheduler.config.num_train_timesteps).to(device)
    scheduler.sigmas = torch.cat([times, torch.zeros(1)])
    if scheduler.order == 2:  # Heun asks twice about each time but the first, and is done at the last
        scheduler.timesteps = scheduler.timesteps.repeat_interleave(2)[1:]
        scheduler.sigmas = scheduler.sigmas.repeat_interleave(2)[1:-1]


def _drawing(scheduler: Any, generators: Sequence[torch.Generator] | None, batch: int) -> dict[str, Any]:
    """What `step` is given besides, so that each sample draws from its own generator."""
    takes = "generator" in inspect.signature(scheduler.step).parameters
    if not takes or (generators is None and not draws_noise(scheduler)):
        return {}
    if generators is None or len(generators) != batch:
        raise ValueError(
            f"{type(scheduler).__name__} draws noise: {batch} generators wanted, one a sample, got "
            f"{'none' if generators is None else len(generators)}"
        )
    return {"generator": list(generators)}


def draws_noise(scheduler: Any) -> bool:
    """Whether the steps of a sampler of ours are random, so that `sample` needs generators."""
    config = getattr(scheduler, "config", {})
    return (
        type(scheduler).__name__ in ("DDPMScheduler", "FlowMatchEulerMaruyamaScheduler")
        or str(config.get("algorithm_type")).startswith("sde-")
        or bool(config.get("stochastic_sampling"))
    )


def _reads_variance(scheduler: Any) -> bool:
    return type(scheduler).__name__ == "DDPMScheduler" and scheduler.config.variance_type == "learned_range"
