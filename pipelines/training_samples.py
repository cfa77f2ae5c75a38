"""Clips sampled from the averaged weights while a network is trained, as files in its run folder.

RUN/samples/step-NNNNNNN/NN.mp4, or NN.png for clips of one frame
RUN/samples/step-NNNNNNN/samples.json    a list of {"file", "prompt", "label", "seed"}
"""

import itertools
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import mmdit
from mmdit import files
from mmdit.clips.video import clip_to_frames
from mmdit.conditioning import Labels, TextEncoder, load_text_encoder
from mmdit.conditioning.text import TextFeatures, quiet
from mmdit.diffusion import make_scheduler, samplers_for
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.loading import DEFAULT_SAMPLERS, load_trained_codec
from mmdit.pipelines.output import write_output
from mmdit.pipelines.request import Condition, pair_conditions
from mmdit.seeds import seed_at
from mmdit.training.build import describe_process
from mmdit.training.processes import on_any
from mmdit.training.run import Run
from mmdit.training.watching import SampleConfig, samples_folder

log = logging.getLogger("mmdit.training")

FEW = 4  # clips, where nobody says how many


@dataclass(frozen=True)
class Wanted:
    """One clip: its condition, and the seed that `mmdit generate --seed` makes the same clip from."""

    condition: Condition
    seed: int


class TrainingPipeline(ClipPipeline):
    """The pipeline over the network as it lies in training. What a frozen text encoder says of the prompts is computed
    once, so that the encoder need not stay in memory."""

    said: dict[str, TextFeatures] | None = None

    def _read_prompts(self, prompts: list[str]) -> dict[str, TextFeatures] | None:
        if self.said is None:
            return super()._read_prompts(prompts)
        device = self._execution_device
        said = {prompt: self.said[prompt] for prompt in ["", *prompts]}
        return {
            name: TextFeatures(*(x.to(device) for x in (of.pooled, of.tokens, of.mask))) for name, of in said.items()
        }


def prepare_samples(run: Run) -> Callable[[Callable[[], bool]], dict[str, np.ndarray]]:
    """Loads the codec and looks at what is asked for; returns what makes the clips of the run's step.

    That is called on all processes alike, with what says whether the training is to stop: then it leaves off. Each
    process makes every so-many-th clip, one at a time, so that the files are the same on any number of processes. It
    returns the frames of the clips by name, each (frame, height, width, 3) uint8; none where sampling failed, which is
    logged.

    Raises:
        Refused: the codec is not there, or the network does not know such prompts, labels or sizes.
    """
    assert run.config.samples is not None
    pipeline = _pipeline(run)
    wanted = _wanted(run, run.config.samples, pipeline)
    pipeline.null_conditions.check(_guidance(run, pipeline), [clip.condition for clip in wanted], [""])
    if run.trainee.text_encoder is None and pipeline.has_text:
        pipeline.said = _read_once(run.data["text_encoder"], [clip.condition.prompt for clip in wanted])
    pipeline.latent_grid()  # refuses what cannot be made
    if run.accelerator.is_main_process:
        files.sweep(run.folder / "samples")

    def take(stop_wanted: Callable[[], bool]) -> dict[str, np.ndarray]:
        clips = _make_all(run, pipeline, wanted, stop_wanted)
        if clips is None or not run.accelerator.is_main_process:
            return {}
        try:
            return _write(run, pipeline, wanted, clips)
        except OSError as error:
            log.warning("the samples of step %d cannot be written, and the training goes on: %s", run.step, error)
            return {}

    return take


def _pipeline(run: Run) -> TrainingPipeline:
    state, network = run.data, run.trainee.transformer
    codec = load_trained_codec(state["codec"])
    if codec.spec.tile is not None:
        codec.vae.enable_tiling()
    encoder = run.trainee.text_encoder
    pipeline = TrainingPipeline(
        transformer=network,
        vae=codec.vae,
        scheduler=make_scheduler(next(n for n in DEFAULT_SAMPLERS if n in samplers_for(run.process)), run.process),
        text_encoder=encoder.model if encoder else None,
        tokenizer=encoder.tokenizer if encoder else None,
        label_names=state["label_names"] or None,
        clip=state["clip"],
        process=describe_process(run.process),
        null_conditions=state["null_conditions"],
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _wanted(run: Run, asked: SampleConfig, pipeline: ClipPipeline) -> list[Wanted]:
    """What each clip is to show; its seed is a function of the run's seed and its number, not of the step."""
    prompts, labels = asked.prompts, asked.labels
    named = max(len(prompts or ()), len(labels or ()))
    count = asked.count or named or FEW
    if named:
        conditions = pair_conditions(
            _in_turn(prompts, count), _in_turn(labels, count), labels=pipeline.labels, has_text=pipeline.has_text
        )
    else:
        conditions = _of_clips(run, count)
    return [Wanted(c, seed_at(run.config.seed, "samples", number) % 2**31) for number, c in enumerate(conditions)]


def _in_turn(values: Iterable[Any] | None, count: int) -> list[Any] | None:
    return None if values is None else list(itertools.islice(itertools.cycle(values), count))


def _of_clips(run: Run, count: int) -> list[Condition]:
    """Captions and labels of the first validation clips, or training clips where there are none, in turn."""
    data, conditions = run.splits.get("validation", run.splits["train"]), run.config.conditions
    rows = [run.sources.row(place) for place in data.places(0, range(min(count, len(data), data.batch_size(0))))]
    prompts = [row["caption"] if conditions.text is not None else "" for row in rows]
    labels = [run.sources.labels.index(row["label"]) if conditions.labels else None for row in rows]
    return list(itertools.islice(itertools.cycle(map(Condition, prompts, labels)), count))


def _read_once(encoder: str, prompts: list[str]) -> dict[str, TextFeatures]:
    with quiet():
        return _said(load_text_encoder(encoder), prompts)


@torch.no_grad()
def _said(encoder: TextEncoder, prompts: list[str]) -> dict[str, TextFeatures]:
    unlike = list(dict.fromkeys(["", *prompts]))
    said = encoder.encode(unlike)
    rows = zip(unlike, said.pooled, said.tokens, said.mask, strict=True)
    return {prompt: TextFeatures(*parts) for prompt, *parts in rows}


def _make_all(
    run: Run, pipeline: TrainingPipeline, wanted: list[Wanted], stop_wanted: Callable[[], bool]
) -> list[np.ndarray] | None:
    """All clips in order, on all processes; None where one of them failed, or the training is to stop."""
    accelerator = run.accelerator
    rank, processes = accelerator.process_index, accelerator.num_processes
    frames, height, width = pipeline.default_size()
    clips: list[np.ndarray] = []
    with run.ema.in_place_of_weights(run.trainee):
        run.trainee.eval()
        pipeline.vae.to(accelerator.device)
        if run.writers is not None and run.trainee.text_encoder is not None:
            # Its weights lie in parts, which come together where the encoder is called as a whole.
            pipeline.said = _said(run.trainee.text_encoder, [clip.condition.prompt for clip in wanted])
        for first in range(0, len(wanted), processes):
            count = min(processes, len(wanted) - first)
            made = torch.zeros(count, frames, height, width, 3, dtype=torch.uint8, device=accelerator.device)
            failed = False
            try:
                # A process without a clip makes one all the same: split weights come together in each forward pass.
                clip = _make(run, pipeline, wanted[min(first + rank, len(wanted) - 1)])
                if rank < count:
                    made[rank] = torch.from_numpy(clip)
            except Exception as error:  # out of memory, or whatever it may be: the training is worth more
                failed = True
                line = (str(error).splitlines() or [type(error).__name__])[0]
                log.warning("sampling failed at step %d, and the training goes on: %s", run.step, line)
            if on_any(accelerator, failed or stop_wanted()):
                break
            clips += list(accelerator.reduce(made).cpu().numpy())
        run.trainee.train()
    pipeline.vae.to("cpu")
    if accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    return clips if len(clips) == len(wanted) else None


def _make(run: Run, pipeline: TrainingPipeline, wanted: Wanted) -> np.ndarray:
    """One clip, (frame, height, width, 3) uint8."""
    assert run.config.samples is not None
    made = pipeline(
        [wanted.condition.prompt] if pipeline.has_text else None,
        None if wanted.condition.label is None else [wanted.condition.label],
        num_inference_steps=run.config.samples.steps,
        guidance_scale=_guidance(run, pipeline),
        seed=wanted.seed,
        precision=_precision(run),
        output_type="pt",
    ).frames
    return clip_to_frames(made[0])


def _guidance(run: Run, pipeline: ClipPipeline) -> float:
    assert run.config.samples is not None
    asked = run.config.samples.guidance
    return pipeline.null_conditions.default_guidance() if asked is None else asked


def _precision(run: Run) -> str:
    return "bfloat16" if run.accelerator.mixed_precision == "bf16" else "float32"


def _write(run: Run, pipeline: ClipPipeline, wanted: list[Wanted], clips: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Writes the folder of this step, in place of an older one: steps are done again after a crash."""
    assert run.config.samples is not None
    target = samples_folder(run.folder, run.step)
    if target.exists():
        files.remove_folder(target)
    suffix = "png" if len(clips[0]) == 1 else "mp4"
    names = [f"{number:02d}" for number in range(len(clips))]
    facts = {
        "mmdit": mmdit.__version__, "step": run.step, "weights": "ema", "sampler": type(pipeline.scheduler).__name__,
        "codec": run.data["codec"]["fingerprint"], "steps": run.config.samples.steps,
        "guidance": _guidance(run, pipeline), "precision": _precision(run),
    }  # fmt: skip
    listed = []
    with files.new_folder(target) as folder:
        for name, one, clip in zip(names, wanted, clips, strict=True):
            shown = _shown(one, pipeline.labels, pipeline.has_text)
            write_output(folder / f"{name}.{suffix}", clip, run.data["clip"]["fps"], {**facts, **shown})
            listed.append({"file": f"{name}.{suffix}", **shown})
        files.write_json(folder / "samples.json", listed)
    return dict(zip(names, clips, strict=True))


def _shown(wanted: Wanted, labels: Labels | None, has_text: bool) -> dict[str, Any]:
    label = wanted.condition.label
    name = None if label is None or labels is None else labels.names[label]
    return {"prompt": wanted.condition.prompt if has_text else None, "label": name, "seed": wanted.seed}
