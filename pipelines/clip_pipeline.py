"""`ClipPipeline`: prompts and labels in, clips out, in the diffusers form.

Shapes: N clips in all, B in a batch, C latent channels, (F, H, W) latent grid; pixels (frame, height, width).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

from mmdit import files, seeds
from mmdit.clips.video import clip_to_frames
from mmdit.conditioning import Labels, TextEncoder
from mmdit.conditioning.text import TextFeatures
from mmdit.diffusion import Given, Guidance, RectifiedFlow, guided_by_given, make_scheduler, sample
from mmdit.diffusion.samplers import Process
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.pipelines.faster import FasterSampling
from mmdit.pipelines.given_frames import GivenFrames, Held, check_guided, encode_held, plan_held
from mmdit.pipelines.request import (
    Condition,
    check_choice,
    check_negatives,
    check_sampling,
    check_size,
    pair_conditions,
    place_clips,
)
from mmdit.pipelines.windows import Windows, make_windows, plan_windows
from mmdit.training.build import read_process

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass
class ClipPipelineOutput(BaseOutput):
    """`frames`, by output type: "np" float32 (N, frame, height, width, 3) in [0, 1]; "pt" float32
    (N, 3, frame, height, width) in [-1, 1]; "pil" a list of N lists of images; "latent" float32 (N, C, F, H, W).
    """

    frames: Any


class ClipPipeline(FasterSampling, DiffusionPipeline):
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
    def labels(self) -> Labels | None:
        """The labels the network knows, or None."""
        return Labels(self.config.label_names) if self.config.label_names else None

    @property
    def has_text(self) -> bool:
        """Whether the network reads prompts."""
        return self.transformer.config.text_dim > 0

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
            steps=num_inference_steps,
            guidance=guidance_scale,
            seed=0,
            first_index=0,
            clips_each=num_clips_per_prompt,
            batch_size=batch_size,
            precision=precision,
        )
        check_choice("output type", output_type, OUTPUT_TYPES)
        guidance = Guidance(guidance_scale, interval=guidance_interval or self._interval)
        clips = len(conditions) * num_clips_per_prompt
        places = place_clips(seed, first_index, clips)
        grid = self.latent_grid(num_frames, height, width, clips=clips)
        _check_generators(generator, clips)
        asked = GivenFrames(image, last_image, video, given) or self.always_given
        force_given = force_given or self.always_force
        windows = self._windows(num_frames, grid, window_frames, overlap, force_given)
        check_guided(image_guidance_scale, given=bool(asked) or windows.count > 1)
        if output_type == "latent" and windows.count > 1 and self.codec.time_factor > 1:
            raise Refused("clips of several windows have no latents", got=f"{windows.count} windows", fix="decode them")
        held = plan_held(asked, self.codec, self.transformer.config.patch_size[0], windows, conditions=len(conditions),
                         overlap=overlap, trained=self.config.given_frames, force=force_given)  # fmt: skip

        conditions = [condition for condition in conditions for _ in range(num_clips_per_prompt)]
        held = [one for one in held or () for _ in range(num_clips_per_prompt)]
        nothing = [Condition(negative, None) for negative in negatives for _ in range(num_clips_per_prompt)]
        text = self._read_prompts([condition.prompt for condition in conditions + nothing])
        made, done = [], 0
        starts = range(0, clips, batch_size)
        steps = len(starts) * windows.count * num_inference_steps
        with self.progress_bar(total=steps) as bar:

            def after_step(step: int) -> None:
                nonlocal done
                done += 1
                bar.update()
                if progress is not None:
                    progress(done, steps)

            for start in starts:
                rows = range(start, min(start + batch_size, clips))
                part, away = conditions[start : rows.stop], nothing[start : rows.stop]

                def draw(
                    window: int, given: Given | None, rows: range = rows, part: Any = part, away: Any = away
                ) -> Tensor:
                    here = [(seeds.seed_at(own, "window", window) if window else own, index) for own, index in places]
                    noise = self._noise(rows, windows.grid, here, generator)
                    predict = self._predictor(part, away, text, guidance, precision)
                    if given is not None:
                        alone = self._predictor(part * 2, away * 2, text, Guidance(1.0), precision)
                        predict = guided_by_given(predict, alone, given, noise, self.process, image_guidance_scale)
                    return sample(
                        predict,
                        noise,
                        self.scheduler,
                        num_inference_steps,
                        generators=self._step_generators(rows, here, generator),
                        after_step=after_step,
                        given=given,
                    )  # (B, C, F, H, W)

                first = self._encode(held[start : rows.stop], windows) if held else None
                made.append(make_windows(self.codec, windows, first, draw, latents=output_type == "latent"))
        self.maybe_free_model_hooks()
        frames = _as_output(made[0] if len(made) == 1 else torch.cat(made), output_type)
        return ClipPipelineOutput(frames=frames) if return_dict else (frames,)

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

    def _windows(
        self, num_frames: int | None, grid: tuple[int, int, int], window: int | None, overlap: int | None, force: bool
    ) -> Windows:
        """In which windows a clip of so many frames is made."""
        trained, patch = self.default_size()[0], self.transformer.config.patch_size[0]
        return plan_windows(
            self.codec, patch, trained if num_frames is None else num_frames, grid, trained,
            window=window, overlap=overlap, kinds=None if force else self.config.given_frames,
        )  # fmt: skip

    def _encode(self, held: list[Held], windows: Windows) -> Given:
        """What a batch is given, on the device."""
        return encode_held(self.codec, held, windows, self.transformer.config.patch_size[0], self._execution_device)

    def _read_prompts(self, prompts: list[str]) -> dict[str, TextFeatures] | None:
        """The features of each prompt and of the empty one, which is the null condition, without the batch axis.

        One is read at a time: its features are then the same to the last bit whatever else is asked for.
        """
        if not self.has_text:
            return None
        encoder = TextEncoder(self.text_encoder, self.tokenizer)
        unlike = list(dict.fromkeys(["", *prompts]))
        ids, mask = encoder.tokenize(unlike)  # once for all, so that a warning comes once
        parts = zip(ids.split(1), mask.split(1), strict=True)
        device = self._execution_device
        features = [encoder(i.to(device), m.to(device)) for i, m in parts]
        rows = [row for part in features for row in zip(part.pooled, part.tokens, part.mask, strict=True)]
        return {prompt: TextFeatures(*row) for prompt, row in zip(unlike, rows, strict=True)}

    def _predictor(
        self,
        conditions: list[Condition],
        nothing: list[Condition],
        text: dict[str, TextFeatures] | None,
        guidance: Guidance,
        precision: str,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """predict(x_t, timesteps) of a batch under its conditions, with guidance away from `nothing`."""
        parts = {"conditional": conditions, "null": nothing, "both": conditions + nothing}
        inputs = {name: self._inputs(part, text) for name, part in parts.items()}
        ask = self._start()

        def predict(part: str, x_t: Tensor, timesteps: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                return ask(part, x_t.to(self.transformer.dtype), timesteps, **inputs[part])

        return self._guided(predict, guidance)

    def _inputs(self, conditions: list[Condition], text: dict[str, TextFeatures] | None) -> dict[str, Tensor]:
        """What the network takes besides latents and timesteps, a row a condition."""
        inputs = {}
        if self.labels is not None:
            null = self.labels.null_id
            ids = [null if condition.label is None else condition.label for condition in conditions]
            inputs["labels"] = torch.tensor(ids, device=self._execution_device)
        if text is not None:
            said = [text[condition.prompt] for condition in conditions]
            inputs["text"] = torch.stack([features.pooled for features in said])
            if self.transformer.config.text_token_dim:
                inputs["text_tokens"] = torch.stack([features.tokens for features in said])
                inputs["text_mask"] = torch.stack([features.mask for features in said])
        return inputs

    def _noise(
        self,
        rows: range,
        grid: tuple[int, int, int],
        places: list[tuple[int, int]],
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> Tensor:
        """Standard normal (B, C, F, H, W) for the clips `rows` of the call."""
        shape = (self.transformer.config.in_channels, *grid)
        if generator is None:
            noise = [seeds.normal(shape, seed, "sample", index) for seed, index in places[rows.start : rows.stop]]
        else:
            drawn_by = [generator] * rows.stop if isinstance(generator, torch.Generator) else generator
            noise = [torch.randn(shape, generator=drawn_by[row], device=drawn_by[row].device) for row in rows]
        return torch.stack(noise).to(self._execution_device)

    def _step_generators(
        self,
        rows: range,
        places: list[tuple[int, int]],
        generator: torch.Generator | Sequence[torch.Generator] | None,
    ) -> list[torch.Generator]:
        """Where a sampler that draws noise in its steps draws that of the clips `rows` from."""
        if generator is None:
            return [seeds.generator(seed, "step", index) for seed, index in places[rows.start : rows.stop]]
        return [generator if isinstance(generator, torch.Generator) else generator[row] for row in rows]


def _check_generators(generator: torch.Generator | Sequence[torch.Generator] | None, clips: int) -> None:
    if isinstance(generator, list | tuple) and len(generator) != clips:
        raise Refused("not one generator a clip", got=f"{len(generator)} generators", expected=f"{clips}")


def _as_output(made: Tensor, output_type: str) -> Any:
    """Clips (N, 3, frame, height, width) in [-1, 1], or latents, to what `ClipPipelineOutput` says."""
    if output_type in ("pt", "latent"):
        return made
    if output_type == "np":
        frames: np.ndarray = ((made + 1) / 2).permute(0, 2, 3, 4, 1).contiguous().numpy()
        return frames
    return [[Image.fromarray(frame) for frame in clip_to_frames(clip)] for clip in made]
