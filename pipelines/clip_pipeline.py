"""`ClipPipeline`: prompts and labels in, clips out, in the diffusers form.

Shapes: N clips in all, B in a batch, C latent channels, (F, H, W) latent grid; pixels (frame, height, width).
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from mmdit import files
from mmdit.diffusion import Guidance, Projection, make_scheduler
from mmdit.errors import Refused
from mmdit.pipelines.call_plan import CallPlan, check_latents, plan_frames
from mmdit.pipelines.clip_output import OUTPUT_TYPES, ClipPipelineOutput
from mmdit.pipelines.defaults import SamplingDefaults, read_defaults
from mmdit.pipelines.given_frames import GivenFrames, check_guided
from mmdit.pipelines.making import MakesClips
from mmdit.pipelines.noise import plan_draws
from mmdit.pipelines.request import (
    Condition,
    check_choice,
    check_image_network,
    check_negatives,
    check_sampling,
    check_size,
    pair_conditions,
)
from mmdit.pipelines.step_end import TENSORS, check_callable, plan_step_end


class ClipPipeline(MakesClips, DiffusionPipeline):
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
        null_conditions: which of "label" and "text" it was trained without now and then; None: nobody said it.
        sampling: how it samples where a call does not say, the fields of `SamplingDefaults`; None: as mmdit's own do.
    """

    always_given = GivenFrames()
    always_force = False
    """What is given where a call gives nothing, and whether it is although the network was not trained with it."""
    _callback_tensor_inputs = list(TENSORS)  # noqa: RUF012  (diffusers reads these names)
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
        null_conditions: Sequence[str] | None = None,
        sampling: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, vae=vae, scheduler=scheduler, text_encoder=text_encoder, tokenizer=tokenizer
        )
        names = list(label_names) if label_names is not None else None
        self.register_to_config(label_names=names, clip=clip, origin=origin, process=process)
        known = None if null_conditions is None else list(null_conditions)
        self.register_to_config(given_frames=list(given_frames or ()), null_conditions=known, sampling=sampling)
        if transformer.config.num_classes != len(names or ()):
            raise Refused(
                "the label names are not those of the network",
                got=f"{len(names or ())} names",
                expected=f"{transformer.config.num_classes}",
            )

    @property
    def defaults(self) -> SamplingDefaults:
        """How a call samples that does not say it."""
        return read_defaults(self.config.sampling)

    def use_sampler(self, name: str) -> None:
        """Samples by another of `mmdit.diffusion.SAMPLERS` from now on.

        Raises Refused for a sampler that is unknown or does not fit the process; it lists those that do.
        """
        self.register_modules(scheduler=make_scheduler(name, self.process))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Writes the pipeline folder, with the file by which plain diffusers loads it; options as in diffusers."""
        loader = Path(__file__).with_name("custom_pipeline.py").read_text(encoding="utf-8")
        files.write_text(Path(save_directory) / "pipeline.py", loader)  # before, so that what is pushed has it
        super().save_pretrained(save_directory, **options)

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
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float = 0.0,
        guidance_projection: Projection | None = None,
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
        callback_on_step_end: Callable[..., Any] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = TENSORS,
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
            num_inference_steps: None for the model's own (`defaults`), or else 12.
            guidance_scale: 1 is without guidance, and half the work; None for the model's own, or else 2, or 1 where
                the network was never trained without its conditions, so that there is nothing to lead away from.
            guidance_interval: (lowest, highest) timestep that is guided, of 0 (clean) to 1000 (noise); None for all.
            guidance_rescale: 0 to 1, how far the deviation of each guided prediction is brought back to that of the
                conditional one (2305.08891): against colours that a large scale makes too strong.
            guidance_projection: adaptive projected guidance (2410.02416), which is against the same; None for plain.
            negative_prompt: what guidance leads away from, in place of the empty prompt: one, or one a prompt.
            batch_size: clips sampled at a time.
            precision: "float32", or "bfloat16" for the network's products.
            output_type: "np", "pt", "pil" or "latent"; see `ClipPipelineOutput`.
            progress: called after each step with (steps done, steps in all), beside diffusers' own progress bar.
            callback_on_step_end: called as callback(pipeline, step, timestep, {"latents": (B, C, F, H, W)}) at the end
                of each step of a batch, of a long clip of each window; may return such a dict with other latents.
            callback_on_step_end_tensor_inputs: which tensors it is shown: "latents", or none.

        A callback, or another thread, may set `interrupt`: then the step at hand is the last one. What is left of the
        batch stays as noisy as it is, and later batches are not made.

        Raises:
            Refused: before any work, for what the model cannot make.
        """
        conditions = pair_conditions(prompt, label, labels=self.labels, has_text=self.has_text)
        negatives = check_negatives(negative_prompt, len(conditions), has_text=self.has_text)
        own = self.defaults
        num_inference_steps = own.steps if num_inference_steps is None else num_inference_steps
        guidance_scale = own.guidance if guidance_scale is None else guidance_scale
        if guidance_scale is None:
            guidance_scale = self.null_conditions.default_guidance(negatives)
        check_sampling(
            steps=num_inference_steps, guidance=guidance_scale, seed=0, first_index=0,
            clips_each=num_clips_per_prompt, batch_size=batch_size, precision=precision,
        )  # fmt: skip
        self.null_conditions.check(guidance_scale, conditions, negatives)
        check_choice("output type", output_type, OUTPUT_TYPES)
        guidance = Guidance(
            guidance_scale, own.guidance_channels, guidance_interval or self._interval, guidance_rescale,
            guidance_projection,
        )  # fmt: skip
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
        check_callable("progress", progress)
        step_end = plan_step_end(self, callback_on_step_end, callback_on_step_end_tensor_inputs)
        self.interrupt = False
        frames = self._make(plan, step_end, progress)
        return ClipPipelineOutput(frames=frames) if return_dict else (frames,)

    def latent_grid(
        self, num_frames: int | None = None, height: int | None = None, width: int | None = None, *, clips: int = 1
    ) -> tuple[int, int, int]:
        """The latent grid (F, H, W) of clips of this size; Refused, naming the nearest size, for an impossible one."""
        default = self.default_size()
        check_image_network(self.transformer.config, num_frames)
        return check_size(
            self.codec,
            self.transformer.config.patch_size,
            frames=default[0] if num_frames is None else num_frames,
            height=default[1] if height is None else height,
            width=default[2] if width is None else width,
            clips=clips,
        )
