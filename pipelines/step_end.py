"""A user's callback at the end of each step, as diffusers has it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from mmdit.diffusion.sampling import Step
from mmdit.errors import Refused, Stopped

TENSORS = ("latents",)  # that a callback may see and change


def check_callable(name: str, callback: object) -> None:
    """Refused for what cannot be called, and is not None."""
    if callback is not None and not callable(callback):
        raise Refused("the callback cannot be called", where=name, got=type(callback).__name__)


def plan_step_end(
    pipeline: Any, callback: Callable[..., Any] | None, tensors: Sequence[str] | None
) -> Callable[[Step], None]:
    """What is called with each finished step: callback(pipeline, number from 0, timestep, {"latents": ...}).

    What the dict that it returns has as "latents" is gone on with. One of diffusers' own callbacks says itself which
    tensors it wants.

    Raises:
        Refused: no callable, or tensors other than `TENSORS`.
        Stopped: meanwhile, for a callback that gives back what are no such latents.
    """
    check_callable("callback_on_step_end", callback)
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        tensors = callback.tensor_inputs
    for name in tensors or ():
        if name not in TENSORS:
            raise Refused("no such tensor for a callback", where="callback_on_step_end_tensor_inputs", got=repr(name),
                          expected=" or ".join(TENSORS))  # fmt: skip

    def step_end(step: Step) -> None:
        if callback is None:
            return
        told = callback(pipeline, step.number - 1, step.timestep, {"latents": step.x} if tensors else {})
        latents = (told or {}).get("latents", step.x)
        if not isinstance(latents, torch.Tensor) or latents.shape != step.x.shape:
            raise Stopped("the callback gave back other latents", where=f"step {step.number}",
                          got=tuple(getattr(latents, "shape", ())), expected=tuple(step.x.shape))  # fmt: skip
        step.x = latents.to(step.x)

    return step_end
