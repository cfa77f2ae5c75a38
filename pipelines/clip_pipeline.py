"""`ClipPipeline`: prompts and labels in, clips out, in the diffusers form.

Shapes: N clips in all, B in a batch, C latent channels, (F, H, W) latent grid; pixels (frame, height, width).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import Tensor

from mmdit.conditioning.text import TextFeatures
from mmdit.diffusion import Given, Guidance, RectifiedFlow, guided_by_given, make_scheduler, sample
from mmdit.diffusion.samplers import Process
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.pipelines.call_plan import CallPlan, check_latents, plan_frames
from mmdit.pipelines.clip_output import OUTPUT_TYPES, ClipPipelineOutput, as_output
from mmdit.pipelines.conditioned import Conditioned
from mmdit.pipelines.given_frames import GivenFrames, Held, check_guided, encode_held
from mmdit.pipelines.noise import plan_draws
from mmdit.pipelines.request import (
    Condition,
    check_choice,
    check_negatives,
    check_sampling,
    check_size,
    pair_conditions,
)
from mmdit.pipelines.windows import Windows, make_windows
from mmdit.training.build import read_process


class ClipPipeline(Conditioned, DiffusionPipeline):
    """Makes clips, and images as clips of one frame, with a trained DiT.

    Args:
        transformer: the network (`mmdit.models.DiT`).
        vae: the codec's diffusers model.
        scheduler: a diffusers scheduler that fits what the network predicts.
        text_encoder, tokenizer: of transformers; None for a network without text.
        label_names: the network's labels, in the order of their ids; None for a network without labels.
        clip: {"frames", "size": [height, width], "fps"} of the clips it was trained on: what is made by default.
        origin: where the weights come from (step, hashes); goes into the files that are made.
        process: what the network was trained for (`mmdit.training.build.describe_process`); None: a rectified flow.
        given_frames: the kinds of given frames that it was trained with, of `mmdit.conditioning.frames.GIVEN`.
    """

    always_given = GivenFrames()
    always_force = False
    """What is given where a call gives nothing, and whether it is although the network was not trained with it."""
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components = ["text_encoder", "tokenizer"]  # noqa: RUF012  (diffusers reads this name)

    def __init__(
        self,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        text_encoder: Any = None,
        tokenizer: Any = None,
        label_names: Sequence[str] | None = None,
        clip: dict[str, Any] | None = None,
        origin: dict[str, Any] | None = None,
        process: dict[str, Any] | None = None,
        given_frames: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        names = list(label_names) if label_names is not None else None
        self.register_to_config(label_names=names, clip=clip, origin=origin, process=process)
        self.register_to_config(given_frames=list(given_frames or ()))
        if transformer.config.num_classes != len(names or ()):
            raise Refused(
                "the label names are not those of the network",
                got=f"{len(names or ())} names",
                expected=f"{transformer.config.num_classes}",
            )

    @property
    def codec(self) -> Codec:
        """The vae with its normalisation, its frame rule, and tiling where `vae.enable_tiling()` was called."""
        return Codec(self.vae, tiling=bool(getattr(self.vae, "use_tiling", False)))

    @property
    def process(self) -> Process:
        """What the network was trained for; where nobody said it, a flow with the scheduler's shift of times."""
        if self.config.process:
            return read_process(self.config.process)
        config = self.scheduler.config
        return RectifiedFlow(shift=config.get("flow_shift") or config.get("shift") or 1.0)

    def use_sampler(self, name: str) -> None:
        """Samples by another of `mmdit.diffusion.SAMPLERS` from now on.

        Raises Refused for a sampler that is unknown or does not fit the process; it lists those that do.
        """
        self.register_modules(scheduler=make_scheduler(name, self.process))

    def default_size(self) -> tuple[int, int, int]:
        """(frames, height, width) of the clips it was trained on."""
        if self.config.clip:
            return self.config.clip["frames"], *self.config.clip["size"]
        frames, height, width = self.transformer.config.sample_size
        return self.codec.clip_frames(frames), height * self.codec.space_factor, width * self.codec.space_factor

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        label: Any = None,
        *,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        given: Any = None,
        image_guidance_scale: float = 1.0,
        window_frames: int | None = None,
        overlap: int | None = None,
        force_given: bool = False,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 12,
        guidance_scale: float = 2.0,
        guidance_interval: tuple[float, float] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_clips_per_prompt: int = 1,
        seed: int | Sequence[int] = 0,
        first_index: int | Sequence[int] = 0,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        batch_size: int = 16,
        precision: str = "float32",
        output_type: str = "np",
        return_dict: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """Makes `num_clips_per_prompt` clips for each prompt or label, those of one prompt side by side.

        Clip i is a function of its condition, the seed and first_index + i: not of the batch it is made in, so a long
        list can be made in parts. With a seed and an index for each clip (of N in all), clip i is a function of those.
        `generator` takes the place of the seed, as elsewhere in diffusers.

        Args:
            prompt, label: one or several; of both, pairs. A prompt of "" asks for anything.
            image, last_image, video, given: frames that the clips are to hold, each for all prompts or a list of one a
                prompt; `mmdit.pipelines.given_frames.GivenFrames` says in which forms (`given` is its `latents`).
                A clip begins with the end of `video`, and goes on from there.
            image_guidance_scale: away from what is made without given frames; above 1 holds on to them more.
            window_frames: longer clips are made in windows of so many frames, each given the end of the one before;
                None for the length of the training clips where the network was trained for it, else for one window.
            overlap: the most latent frames that a window is given, and that are given of `video`; None for a third.
            force_given: give frames that the network was not trained with.
            num_frames, height, width: None for those of the training clips; one frame is an image.
            guidance_scale: 1 is without guidance, and half the work.
            guidance_interval: (lowest, highest) timestep that is guided, of 0 (clean) to 1000 (noise); None for all.
            negative_prompt: what guidance leads away from, in place of the empty prompt: one, or one a prompt.
            batch_size: clips sampled at a time.
            precision: "float32", or "bfloat16" for the network's products.
            output_type: "np", "pt", "pil" or "latent"; see `ClipPipelineOutput`.
            progress: called after each step with (steps done, steps in all), beside diffusers' own progress bar.

        Raises:
            Refused: before any work, for what the model cannot make.
        """
        conditions = pair_conditions(prompt, label, labels=self.labels, has_text=self.has_text)
        negatives = check_negatives(negative_prompt, len(conditions), has_text=self.has_text)
        check_sampling(
            steps=num_inference_steps, guidance=guidance_scale, seed=0, first_index=0,
            clips_each=num_clips_per_prompt, batch_size=batch_size, precision=precision,
        )  # fmt: skip
        check_choice("output type", output_type, OUTPUT_TYPES)
        guidance = Guidance(guidance_scale, interval=guidance_interval or self._interval)
        clips = len(conditions) * num_clips_per_prompt
        draws = plan_draws(seed, first_index, generator, clips)
        asked = GivenFrames(image, last_image, video, given) or self.always_given
        grid = self.latent_grid(num_frames, height, width, clips=clips)
        windows, held = plan_frames(
            self, asked, num_frames, grid, conditions=len(conditions), window=window_frames, overlap=overlap,
            force=force_given or self.always_force,
        )  # fmt: skip
        check_guided(image_guidance_scale, given=bool(asked) or windows.count > 1)
        check_latents(output_type, self.codec, windows)
        each = range(num_clips_per_prompt)
        plan = CallPlan(
            conditions=[condition for condition in conditions for _ in each],
            nothing=[Condition(negative, None) for negative in negatives for _ in each],
            draws=draws, windows=windows, held=[one for one in held for _ in each],
            steps=num_inference_steps, guidance=guidance, image_guidance=image_guidance_scale,
            batch_size=batch_size, precision=precision, output_type=output_type,
        )  # fmt: skip
        frames = self._make(plan, progress)
        return ClipPipelineOutput(frames=frames) if return_dict else (frames,)

    def _make(self, plan: CallPlan, progress: Callable[[int, int], None] | None) -> Any:
        """What a plan asks for, as its output type says."""
        text = self._read_prompts(plan.prompts())
        steps, done = plan.steps_in_all(), 0
        with self.progress_bar(total=steps) as bar:

            def after_step(step: int) -> None:
                nonlocal done
                done += 1
                bar.update()
                if progress is not None:
                    progress(done, steps)

            made = [self._make_batch(plan, clips, text, after_step) for clips in plan.batches()]
        self.maybe_free_model_hooks()
        return as_output(made[0] if len(made) == 1 else torch.cat(made), plan.output_type)

    def _make_batch(
        self, plan: CallPlan, clips: slice, text: dict[str, TextFeatures] | None, after_step: Callable[[int], None]
    ) -> Tensor:
        """These clips of a call, (B, 3, frame, height, width) in [-1, 1], or their latents."""
        conditions, nothing, windows = plan.conditions[clips], plan.nothing[clips], plan.windows
        shape = (self.transformer.config.in_channels, *windows.grid)

        def draw(window: int, given: Given | None) -> Tensor:
            noise = plan.draws.noise(clips, window, shape, self._execution_device)
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

    def latent_grid(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None, *, clips: int = 1
    ) -> tuple[int, int, int]:
        """The latent grid (F, H, W) of clips of this size; Refused, naming the nearest size, for an impossible one."""
        default = self.default_size()
        return check_size(
            self.codec,
            self.transformer.config.patch_size,
            frames=default[0] if num_frames is None else num_frames,
            height=default[1] if height is None else height,
            width=default[2] if width is None else width,
            clips=clips,
        )

    def _encode(self, held: list[Held], windows: Windows) -> Given:
        """What a batch is given, on the device."""
        return encode_held(self.codec, held, windows, self.transformer.config.patch_size[0], self._execution_device)
