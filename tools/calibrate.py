"""`mmdit calibrate`: how far attention can be broadcast with some weights, found once and kept beside them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.pipelines.loading import Source

CLIPS = 8  # at least so many are made at each try


def main(
    source: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or a pipeline folder.")],
    floor: Annotated[float, typer.Option(help="PSNR in dB that every clip keeps to, against the clip without.")] = 35.0,
    prompt: Annotated[list[str] | None, typer.Option(help="What to try it on, in words; repeat it.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label by name or number; repeat it.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="A list of them, as mmdit generate reads it.")] = None,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 12,
    sampler: Annotated[str | None, typer.Option(help="euler, heun, dpm++2m, ... [default: the model's own]")] = None,
    guidance: Annotated[float, typer.Option(help="How strongly to follow the prompt; 1 is without guidance.")] = 2.0,
    seed: Annotated[int, typer.Option(help="The seed of the clips that it is tried on.")] = 1,
    batch: Annotated[int, typer.Option(help="Clips sampled at a time.")] = 16,
    weights: Annotated[str, typer.Option(help="ema (averaged), or raw (as last trained).")] = "ema",
    codec: Annotated[str | None, typer.Option(help="Where the codec lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    fallback: Annotated[bool, typer.Option("--fallback", help="Pass over a damaged newest checkpoint.")] = False,
) -> None:
    """Finds how seldom attention can be computed with every clip at --floor dB or more, for mmdit generate --faster.

    The settings lie in broadcast.json: in a pipeline folder, or next to the checkpoint. They are of these weights, and
    floor holds for the prompts, steps, sampler and guidance that they were found with: name those that you use. Without
    prompts and labels, it is tried on the model's labels.

    Example:
      mmdit calibrate runs/mine --prompt "a red coat" --prompt "a blue dress" --floor 35
    """
    from mmdit.diffusion import RectifiedFlow, make_scheduler
    from mmdit.pipelines.calibration import calibrate_broadcast, check_floor, save_broadcast
    from mmdit.pipelines.loading import WEIGHTS, find_broadcast, find_source, load_pipeline
    from mmdit.pipelines.output import check_writable
    from mmdit.pipelines.request import check_choice, check_sampling
    from mmdit.tools.clip_options import device_of
    from mmdit.tools.progress import notes, progress_line

    found = find_source(source, fallback=fallback)
    call = _call(found, prompts, prompt, label)
    check_sampling(steps=steps, guidance=guidance, seed=seed, first_index=0, clips_each=1, batch_size=batch,
                   precision="float32")  # fmt: skip
    check_choice("weights", weights, WEIGHTS)
    check_floor(floor)
    if sampler is not None:
        make_scheduler(sampler, found.process or RectifiedFlow())
    path = find_broadcast(found, weights)
    check_writable(path)
    with notes(), progress_line("calibrate", "tries") as advance:
        pipeline = load_pipeline(found, weights=weights, codec=codec, device=device_of(device))
        pipeline.set_progress_bar_config(disable=True)
        if sampler is not None:
            pipeline.use_sampler(sampler)
        best = calibrate_broadcast(
            pipeline, floor=floor, num_inference_steps=steps, guidance_scale=guidance, seed=seed, batch_size=batch,
            after_try=lambda done, most: advance(done, most, ""), **call,
        )  # fmt: skip
    save_broadcast(path, best, pipeline)
    every = ", ".join(f"{kind} attention every {count}" for kind, count in best.how.every.items() if count > 1)
    print(f"calibrated: {every} steps, at timesteps {best.how.interval[0]:g} to {best.how.interval[1]:g}; "
          f"{best.reused:.0%} of attentions are not computed, the lowest PSNR is {best.psnr:.1f} dB")  # fmt: skip
    print(f"written: {path}; use it: mmdit generate {source} --faster broadcast")


def _call(found: "Source", prompts: Path | None, prompt: list[str] | None, label: list[str] | None) -> dict[str, Any]:
    """Prompts and labels for the pipeline, and how many clips of each."""
    from mmdit.errors import Refused
    from mmdit.tools.generate import _entries

    if not (prompts or prompt or label):
        if found.labels is not None:
            names = found.labels.names
            label = list(names[:: -(-len(names) // CLIPS)])
        elif found.has_text:
            raise Refused("nothing to try it on", expected="prompts of the kind that you use",
                          fix="name some: --prompt or --prompts FILE")  # fmt: skip
    entries = _entries(found, prompts, prompt, label, None)
    labels = [entry.label for entry in entries]
    if any(labels) and not all(labels):
        raise Refused("labels for some and not for all", where=prompts, fix="give all a label, or none")
    call: dict[str, Any] = {"num_clips_per_prompt": -(-CLIPS // len(entries))}
    if found.has_text:
        call["prompt"] = [entry.prompt or "" for entry in entries]
    if any(labels):
        call["label"] = labels
    return call


if __name__ == "__main__":
    run(main)
