"""From the plan of a call to its clips: batch by batch, window by window, step by step.

Shapes: N clips in all, B in a batch, C latent channels, (F, H, W) latent grid; pixels (frame, height, width).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdit.conditioning.text import TextFeatures
from mmdit.diffusion import Given, Guidance, RectifiedFlow, guided_by_given, sample
from mmdit.diffusion.samplers import Process
from mmdit.diffusion.sampling import Step
from mmdit.pipelines.call_plan import CallPlan
from mmdit.pipelines.clip_output import as_output
from mmdit.pipelines.conditioned import Conditioned
from mmdit.pipelines.given_frames import Held, encode_held
from mmdit.pipelines.memory import SavesMemory
from mmdit.pipelines.windows import Windows, make_windows
from mmdit.training.build import read_process


class MakesClips(Conditioned, SavesMemory):
    """The part of `ClipPipeline` that does what was planned."""

    scheduler: Any
    progress_bar: Callable[..., Any]
    maybe_free_model_hooks: Callable[[], None]
    _interrupt = False

    @property
    def process(self) -> Process:
        """What the network was trained for; where nobody said it, a flow with the scheduler's shift of times."""
        if self.config.process:
            return read_process(self.config.process)
        config = self.scheduler.config
        return RectifiedFlow(shift=config.get("flow_shift") or config.get("shift") or 1.0)

    @property
    def interrupt(self) -> bool:
        """Whether the call at hand is to stop after its present step; a new call begins with False."""
        return self._interrupt

    @interrupt.setter
    def interrupt(self, value: bool) -> None:
        self._interrupt = value

    @property
    def num_timesteps(self) -> int:
        """The timesteps of the last call's sampling."""
        return len(self.scheduler.timesteps)

    def _make(
        self, plan: CallPlan, step_end: Callable[[Step], None], progress: Callable[[int, int], None] | None
    ) -> Any:
        """What a plan asks for, as its output type says."""
        text = self._read_prompts(plan.prompts())
        steps, done = plan.steps_in_all(), 0
        with self.progress_bar(total=steps) as bar:

            def after_step(step: Step) -> None:
                nonlocal done
                done += 1
                bar.update()
                if progress is not None:
                    progress(done, steps)
                step_end(step)
                step.stop = self.interrupt

            made = list[Tensor]()
            for clips in plan.batches():
                if not (made and self.interrupt):
                    made.append(self._make_batch(plan, clips, text, after_step))
        self.maybe_free_model_hooks()
        return as_output(made[0] if len(made) == 1 else torch.cat(made), plan.output_type)

    def _make_batch(
        self, plan: CallPlan, clips: slice, text: dict[str, TextFeatures] | None, after_step: Callable[[Step], None]
    ) -> Tensor:
        """These clips of a call, (B, 3, frame, height, width) in [-1, 1], or their latents."""
        conditions, nothing, windows = plan.conditions[clips], plan.nothing[clips], plan.windows
        shape = (self.transformer.config.in_channels, *windows.grid)

        def draw(window: int, given: Given | None) -> Tensor:
            noise = plan.draws.noise(clips, window, shape, self._execution_device)
            if self.interrupt:
                return noise
            predict = self._predictor(conditions, nothing, text, plan.guidance, plan.precision)
            if given is not None:
                alone = self._predictor(conditions * 2, nothing * 2, text, Guidance(1.0), plan.precision)
                predict = guided_by_given(predict, alone, given, noise, self.process, plan.image_guidance)
            return sample(
                predict, noise, self.scheduler, plan.steps, generators=plan.draws.of_steps(clips, window),
                after_step=after_step, given=given,
            )  # (B, C, F, H, W)  # fmt: skip

        first = self._encode(plan.held[clips], windows) if plan.held else None
        return make_windows(self.codec, windows, first, draw, latents=plan.output_type == "latent")

    def _encode(self, held: list[Held], windows: Windows) -> Given:
        """What a batch is given, on the device."""
        return encode_held(self.codec, held, windows, self.transformer.config.patch_size[0], self._execution_device)
