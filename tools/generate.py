"""`mmdit generate`: clips and images from a prompt, a label, or both."""

import logging
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.diffusion import Projection
    from mmdit.pipelines.clip_pipeline import ClipPipeline
    from mmdit.pipelines.filling import Call
    from mmdit.pipelines.loading import Source
    from mmdit.pipelines.prompt_list import Entry
    from mmdit.pipelines.wishes import Sampling, Wish

MOST_CLIPS = 10_000


def main(
    source: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or a pipeline folder.")],
    out: Annotated[Path, typer.Option(help="A .mp4, .gif, .webp or .png file; for several clips, a folder.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to show, in words; repeat it for several.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label by name or number; repeat it for several.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photo that the clips begin with, cut to their shape.")] = None,
    last_image: Annotated[Path | None, typer.Option(help="A photo that they end with.")] = None,
    extend: Annotated[Path | None, typer.Option(help="A video to go on with: they begin with its end.")] = None,
    force_given: Annotated[bool, typer.Option("--force-given", help="Even if it was not trained for these.")] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="A .txt (a prompt a line), .csv or .jsonl file; its columns: prompt, label, negative, seed, out, "
            "frames, size, guidance."
        ),
    ] = None,
    negative: Annotated[str | None, typer.Option(help="What guidance leads away from, in words.")] = None,
    count: Annotated[int, typer.Option(help="Clips for each prompt or label.")] = 1,
    frames: Annotated[int | None, typer.Option(help="Frames; 1 for an image. [default: as trained]")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels. [default: as trained]")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second. [default: as trained]")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps. [default: the model's own, or 12]")] = None,
    sampler: Annotated[str | None, typer.Option(help="euler, heun, dpm++2m, ... [default: the model's own]")] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="How strongly to follow the prompt; 1 is without. [default: the model's own, or 2 if it can be guided]"
        ),
    ] = None,
    guidance_interval: Annotated[
        str | None, typer.Option(help="LOWEST-HIGHEST timestep that is guided, of 0 (clean) to 1000. [default: all]")
    ] = None,
    guidance_rescale: Annotated[
        float, typer.Option(help="0 to 1: how far to undo the stronger colours of a large --guidance.")
    ] = 0.0,
    guidance_projection: Annotated[
        str | None,
        typer.Option(
            help="Adaptive projected guidance, against the same: parallel=0, or with more, as in "
            "parallel=0,radius=15,momentum=-0.5."
        ),
    ] = None,
    faster: Annotated[
        list[str] | None,
        typer.Option(
            help="Sample faster, at some loss (mmdit bench sample measures it): broadcast (after mmdit calibrate), "
            "first-block or first-block=0.2, compile; repeat it for several."
        ),
    ] = None,
    format: Annotated[
        str | None, typer.Option(help="In a folder: mp4, gif, webp, png. [default: mp4, images png]")
    ] = None,
    sheet: Annotated[bool, typer.Option("--sheet", help="In a folder: also sheet.png, a row a clip.")] = False,
    batch: Annotated[int, typer.Option(help="Clips sampled at a time.")] = 16,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16.")] = "float32",
    weights: Annotated[str, typer.Option(help="ema (averaged), or raw (as last trained).")] = "ema",
    codec: Annotated[str | None, typer.Option(help="Where the codec lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    fallback: Annotated[bool, typer.Option("--fallback", help="Pass over a damaged newest checkpoint.")] = False,
) -> None:
    """Generates clips from a prompt, a label, or both; with --frames 1, images.

    Several prompts and labels are paired; a single one goes with all. How each file was made is written into it and
    beside it (a folder's manifest.json, or FILE.json): `mmdit regenerate FILE` makes it again. Stopped at any moment,
    the same command goes on where it was; started by torchrun, its processes share the work.

    Example:
      mmdit generate runs/mine --prompt "a striped red coat, seen turning round" --out coat.mp4
      mmdit generate runs/mine --prompts prompts.csv --count 4 --out clips --sheet
    """
    from mmdit.pipelines.faster import read_ways
    from mmdit.pipelines.filling import Call, fill, plan
    from mmdit.pipelines.given_files import check_given, check_not_given, places_of, read_given
    from mmdit.pipelines.loading import WEIGHTS, call_facts, find_source, load_pipeline
    from mmdit.pipelines.output import check_own
    from mmdit.pipelines.process_group import process_group
    from mmdit.pipelines.prompt_list import read_size
    from mmdit.pipelines.request import check_choice, check_sampling
    from mmdit.pipelines.wishes import Sampling
    from mmdit.tools.clip_options import device_of
    from mmdit.tools.progress import notes, progress_line

    # Everything that can be refused without a model is refused before one is loaded.
    found = find_source(source, fallback=fallback)
    entries = _entries(found, prompts, prompt, label, negative)
    steps = found.sampling.steps if steps is None else steps
    asked = found.sampling.guidance if guidance is None else guidance
    guidance = _guidance(found, entries, asked)
    check_sampling(steps=steps, guidance=guidance, seed=seed, first_index=0, clips_each=count, batch_size=batch,
                   precision=precision)  # fmt: skip
    check_choice("weights", weights, WEIGHTS)
    ways = read_ways(faster)
    check_ways(ways, found, weights, source)
    sampling = Sampling(seed, steps, guidance, _interval(guidance_interval), precision,
                        _rescale(guidance_rescale), _projection(guidance_projection))  # fmt: skip
    asked_size = read_size(size, "--size") if size else None
    call = Call(out, format, count, frames, asked_size, fps, batch, sheet, sampling)
    _check(call, found, sampler, len(entries) * count)
    check_not_given(out, image, last_image, extend)
    check_own(out)
    wishes = plan(call, entries, found, codec)
    given_size = _given_size(wishes, found) if image or last_image or extend else None
    given, given_facts = read_given(image, last_image, extend, clip=found.clip, size=given_size,
                                    trained=found.given_frames, force=force_given)  # fmt: skip
    check_given(given, found, [(wish.frames, wish.size) for wish in wishes], codec=codec, force=force_given)
    places = {"source": str(found.folder.resolve()), **places_of(image, last_image, extend)}
    with notes(), process_group(device) as group:
        if asked is None and guidance == 1 and group.is_first:
            logging.getLogger("mmdit").warning("made without guidance: the model was always told its conditions")
        pipeline = load_pipeline(found, weights=weights, codec=codec, device=device_of(group.device))
        pipeline.set_progress_bar_config(disable=True)  # ours is shown instead
        pipeline.always_given, pipeline.always_force = given, force_given
        if sampler is not None:
            pipeline.use_sampler(sampler)
        use_ways(pipeline, ways, sampling)
        facts = call_facts(found, pipeline, sampler) | given_facts
        with progress_line("generate", "steps", quiet=not group.is_first) as advance:
            fill(call, pipeline, wishes, facts, places, group,
                 progress=lambda done, steps: advance(done, steps, ""))  # fmt: skip
    if group.is_first:
        print(f"generated: {out}" + (f" ({_counted(wishes)} and manifest.json)" if out.is_dir() else ""))


def _entries(
    found: "Source", path: Path | None, prompt: list[str] | None, label: list[str] | None, negative: str | None
) -> "list[Entry]":
    """What is asked for by --prompts, or by --prompt and --label."""
    from mmdit.errors import Refused
    from mmdit.pipelines.prompt_list import Entry, read_prompt_list
    from mmdit.pipelines.request import check_negatives, pair_conditions

    check_negatives(negative, 1, has_text=found.has_text)
    if path is not None:
        if prompt or label:
            raise Refused("prompts from two places", got="--prompts and --prompt or --label", fix="use one of them")
        return read_prompt_list(path, labels=found.labels, has_text=found.has_text, negative=negative)
    conditions = pair_conditions(prompt or None, label or None, labels=found.labels, has_text=found.has_text)
    names = [None if c.label is None or found.labels is None else found.labels.names[c.label] for c in conditions]
    return [
        Entry("", condition.prompt or None, name, negative) for condition, name in zip(conditions, names, strict=True)
    ]


def _guidance(found: "Source", entries: "list[Entry]", asked: float | None) -> float:
    """The scale for all, by default the model's own; refused where there is nothing to lead away from."""
    from mmdit.errors import Refused
    from mmdit.pipelines.request import Condition

    negatives = [entry.negative or "" for entry in entries]
    scale = found.null_conditions.default_guidance(negatives) if asked is None else asked
    for entry in entries:
        label = None if entry.label is None or found.labels is None else found.labels.id(entry.label)
        own = scale if entry.guidance is None else entry.guidance
        try:
            found.null_conditions.check(own, [Condition(entry.prompt or "", label)], [entry.negative or ""])
        except Refused as error:
            raise Refused(f"{entry.where}: {error}") if entry.where else error from None
    return scale


def _given_size(wishes: "list[Wish]", found: "Source") -> tuple[int, int] | None:
    """(height, width) that given frames are cut to, once for all clips; None for that of the training clips."""
    from mmdit.errors import Refused

    own: tuple[int, int] | None = tuple(found.clip["size"]) if found.clip else None
    sizes = dict.fromkeys(wish.size or own for wish in wishes)
    if len(sizes) > 1:
        told = [f"{size[0]}x{size[1]}" if size else "the model's own" for size in sizes]
        raise Refused("given frames are cut to one size", got=f"clips of {' and '.join(told[:3])}",
                      expected="one size for all", fix="ask for each size by itself")  # fmt: skip
    return next(iter(sizes))


def _check(call: "Call", found: "Source", sampler: str | None, clips: int) -> None:
    """Refused for what no file can be made of."""
    from mmdit.diffusion import RectifiedFlow, make_scheduler
    from mmdit.errors import Refused
    from mmdit.pipelines import output
    from mmdit.pipelines.manifest import MANIFEST

    if sampler is not None:
        make_scheduler(sampler, found.process or RectifiedFlow())  # refuses one that does not fit
    if clips > MOST_CLIPS:
        raise Refused("too many clips", got=clips, expected=f"at most {MOST_CLIPS} at a time")
    if call.fps is not None and not 0.01 <= call.fps <= 1000:  # a gif shows a frame for eleven minutes at most
        raise Refused("the rate is out of range", got=call.fps, expected="0.01 to 1000 frames a second")
    kind = output.output_format(call.out)
    if kind and clips > 1:
        raise Refused("several clips need a folder", got=f"{call.out} for {clips} clips",
                      fix=f"say --out {call.out.with_suffix('')} --format {kind}")  # fmt: skip
    if (kind and call.format not in (None, kind)) or call.format not in (None, *output.FORMATS):
        raise Refused("this format is not written there", got=f"{call.format} for {call.out}", expected=output.KNOWN)
    if kind and call.sheet:
        raise Refused("a sheet needs a folder", got=f"--sheet for {call.out}", fix="leave it out, or name a folder")
    output.check_writable(call.out, may_hold=MANIFEST)


def check_ways(ways: dict[str, Any], found: "Source", weights: str, source: Path) -> None:
    """Refused, before the weights are loaded, for a broadcast that was not calibrated for them."""
    from mmdit.pipelines.broadcast_file import missing_broadcast, read_stored
    from mmdit.pipelines.loading import find_broadcast, origin_of

    if "broadcast" in ways:
        path = find_broadcast(found, weights)
        if not path.is_file():
            raise missing_broadcast(source, weights)
        read_stored(path, origin_of(found, weights))


def use_ways(pipeline: "ClipPipeline", ways: dict[str, Any], sampling: "Sampling") -> None:
    """Switches them on; a broadcast that was calibrated with another sampler, steps or guidance is noted."""
    from mmdit.pipelines.broadcast_file import read_stored, sampler_of, unlike

    pipeline.use_faster(ways)
    if "broadcast" in ways and pipeline.broadcast_file is not None:
        now = {"num_inference_steps": sampling.steps, "guidance_scale": sampling.guidance,
               "sampler": sampler_of(pipeline)}  # fmt: skip
        note = unlike(read_stored(pipeline.broadcast_file, pipeline.config.origin).found_with, now)
        if note is not None:
            logging.getLogger("mmdit").warning(note)


def _counted(wishes: "list[Wish]") -> str:
    """How many files of which formats: "2 mp4 and 1 png files"."""
    kinds = Counter(wish.file.rpartition(".")[2].lower() for wish in wishes)
    return " and ".join(f"{count} {kind}" for kind, count in kinds.items()) + " files"


def _interval(text: str | None) -> tuple[float, float] | None:
    """(lowest, highest) of "LOWEST-HIGHEST"."""
    from mmdit.diffusion import Guidance
    from mmdit.errors import Refused

    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text.strip(), re.ASCII)
    if match is None:
        raise Refused("not an interval", where="--guidance-interval", got=repr(text[:40]),
                      expected="LOWEST-HIGHEST timestep, for example 200-900")  # fmt: skip
    return Guidance(interval=(float(match[1]), float(match[2]))).interval


def _rescale(value: float) -> float:
    from mmdit.diffusion import Guidance

    return Guidance(rescale=value).rescale


def _projection(text: str | None) -> "Projection | None":
    """That of "parallel=0,radius=15,momentum=-0.5", or of some of these."""
    from dataclasses import fields

    from mmdit.diffusion import Projection
    from mmdit.errors import Refused

    if text is None:
        return None
    try:
        parts = [part.partition("=") for part in text.split(",")]
        values = {name.strip(): float(value) for name, _, value in parts}
        if len(values) < len(parts) or not set(values) <= {field.name for field in fields(Projection)}:
            raise ValueError
    except ValueError:
        raise Refused("not a projection of guidance", where="--guidance-projection", got=repr(text[:40]),
                      expected="parallel, radius, momentum, as in parallel=0,radius=15") from None  # fmt: skip
    return Projection(**values)


if __name__ == "__main__":
    run(main)
