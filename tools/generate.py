"""`mmdit generate`: clips and images from a prompt, a label, or both."""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    import torch

    from mmdit.pipelines.clip_pipeline import ClipPipeline
    from mmdit.pipelines.loading import Source
    from mmdit.pipelines.request import Condition

MOST_CLIPS = 10_000
Shape = tuple[int, int, int]  # (frames, height, width) of a clip


class Settings(NamedTuple):
    """What is the same for all clips of one call."""

    seed: int
    steps: int
    guidance: float
    precision: str
    batch: int


def main(
    source: Annotated[Path, typer.Argument(help="A run folder, one of its checkpoints, or a pipeline folder.")],
    out: Annotated[Path, typer.Option(help="A .mp4, .gif or .png file; for several clips, a new folder.")],
    prompt: Annotated[list[str] | None, typer.Option(help="What to show, in words; repeat it for several.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="A label by name or number; repeat it for several.")] = None,
    image: Annotated[Path | None, typer.Option(help="A photo that the clips begin with.")] = None,
    last_image: Annotated[Path | None, typer.Option(help="A photo that they end with.")] = None,
    extend: Annotated[Path | None, typer.Option(help="A video to go on with: they begin with its end.")] = None,
    force_given: Annotated[bool, typer.Option("--force-given", help="Even if it was not trained for these.")] = False,
    count: Annotated[int, typer.Option(help="Clips for each prompt or label.")] = 1,
    frames: Annotated[int | None, typer.Option(help="Frames; 1 for an image. [default: as trained]")] = None,
    size: Annotated[str | None, typer.Option(help="HEIGHTxWIDTH in pixels. [default: as trained]")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second. [default: as trained]")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    steps: Annotated[int, typer.Option(help="Sampling steps.")] = 12,
    sampler: Annotated[str | None, typer.Option(help="euler, heun, dpm++2m, ... [default: the model's own]")] = None,
    guidance: Annotated[float, typer.Option(help="How strongly to follow the prompt; 1 is without guidance.")] = 2.0,
    format: Annotated[str | None, typer.Option(help="In a folder: mp4, gif, png. [default: mp4, images png]")] = None,
    batch: Annotated[int, typer.Option(help="Clips sampled at a time.")] = 16,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16.")] = "float32",
    weights: Annotated[str, typer.Option(help="ema (averaged), or raw (as last trained).")] = "ema",
    codec: Annotated[str | None, typer.Option(help="Where the codec lies now, if it was moved.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")] = "auto",
    fallback: Annotated[bool, typer.Option("--fallback", help="Pass over a damaged newest checkpoint.")] = False,
) -> None:
    """Generates clips from a prompt, a label, or both; with --frames 1, images.

    Several prompts and labels are paired; a single one goes with all. How each file was made is written into it, and
    for a folder into its manifest.json too.

    Example:
      mmdit generate runs/mine --prompt "a striped red coat, seen turning round" --out coat.mp4
    """
    from mmdit.diffusion import RectifiedFlow, make_scheduler
    from mmdit.errors import Refused
    from mmdit.pipelines import output
    from mmdit.pipelines.given_files import read_given
    from mmdit.pipelines.loading import WEIGHTS, find_source, load_pipeline
    from mmdit.pipelines.request import check_choice, check_sampling, pair_conditions

    # Everything that can be refused without a model is refused before one is loaded.
    found = find_source(source, fallback=fallback)
    conditions = pair_conditions(prompt or None, label or None, labels=found.labels, has_text=found.has_text)
    check_sampling(steps=steps, guidance=guidance, seed=seed, first_index=0, clips_each=count, batch_size=batch,
                   precision=precision)  # fmt: skip
    check_choice("weights", weights, WEIGHTS)
    if sampler is not None:
        make_scheduler(sampler, found.process or RectifiedFlow())  # refuses one that does not fit
    if len(conditions) * count > MOST_CLIPS:
        raise Refused("too many clips", got=len(conditions) * count, expected=f"at most {MOST_CLIPS} at a time")
    height, width = _size(size) if size else (None, None)
    given, given_facts = read_given(image, last_image, extend, clip=found.clip, size=_size(size) if size else None,
                                    trained=found.given_frames, force=force_given)  # fmt: skip
    fps = fps if fps is not None else (found.clip or {}).get("fps", 8)
    if not 0 < fps <= 1000:
        raise Refused("the rate is out of range", got=fps, expected="more than 0 and at most 1000 frames a second")
    kind = output.output_format(out)
    if kind and len(conditions) * count > 1:
        raise Refused("several clips need a folder", got=f"{out} for {len(conditions) * count} clips",
                      fix=f"say --out {out.with_suffix('')} --format {kind}")  # fmt: skip
    if (kind and format not in (None, kind)) or format not in (None, *output.FORMATS):
        raise Refused("this format is not written there", got=f"{format} for {out}", expected="mp4, gif or png")
    output.check_writable(out)

    with _notes():
        pipeline = load_pipeline(found, weights=weights, codec=codec, device=_device(device))
        pipeline.set_progress_bar_config(disable=True)  # ours is shown instead
        pipeline.always_given, pipeline.always_force = given, force_given
        if sampler is not None:
            pipeline.use_sampler(sampler)
        asked = zip((frames, height, width), pipeline.default_size(), strict=True)
        shape: Shape = tuple(default if value is None else value for value, default in asked)  # type: ignore[assignment]
        pipeline.latent_grid(*shape, clips=min(batch, len(conditions) * count))
        kind = kind or format or ("png" if shape[0] == 1 else "mp4")
        settings = Settings(seed, steps, guidance, precision, batch)
        jobs = [condition for condition in conditions for _ in range(count)]
        _make(pipeline, jobs, shape, fps, settings, out, kind, _facts(found, pipeline, sampler) | given_facts)
    print(f"generated: {out}" + (f" ({len(jobs)} {kind} files and manifest.json)" if out.is_dir() else ""))


def _make(
    pipeline: "ClipPipeline",
    jobs: list["Condition"],
    shape: Shape,
    fps: float,
    settings: Settings,
    out: Path,
    kind: str,
    facts: dict[str, Any],
) -> None:
    """Makes the clips, a batch at a time, so that memory does not grow with their number, and writes them."""
    from mmdit import files
    from mmdit.pipelines.output import output_format, write_output
    from mmdit.tools.progress import progress_line

    made = _batches(pipeline, jobs, shape, settings)
    with progress_line("generate", "steps") as advance:
        if output_format(out):
            for _, frames in made(advance):
                write_output(out, frames, fps, _about(pipeline, jobs[0], 0, shape, fps, settings, facts))
            return
        if out.is_dir():
            out.rmdir()  # check_writable has seen that it is empty
        with files.new_folder(out) as folder:
            listed = []
            for index, frames in made(advance):
                name = f"{index:0{len(str(len(jobs) - 1))}d}-{_slug(pipeline, jobs[index])}.{kind}"
                about = _about(pipeline, jobs[index], index, shape, fps, settings, facts)
                write_output(folder / name, frames, fps, about)
                listed.append({"file": name, **about})
            files.write_json(folder / "manifest.json", listed)


def _batches(
    pipeline: "ClipPipeline", jobs: list["Condition"], shape: Shape, settings: Settings
) -> Callable[[Any], Iterator[tuple[int, Any]]]:
    """Called with what to tell the progress to, gives (index, uint8 frames) of each clip in order."""
    from mmdit.clips.video import clip_to_frames

    starts = range(0, len(jobs), settings.batch)

    def made(advance: Any) -> Iterator[tuple[int, Any]]:
        for number, start in enumerate(starts):
            part = jobs[start : start + settings.batch]

            def told(done: int, steps: int, number: int = number) -> None:
                advance(number * steps + done, len(starts) * steps, "")

            clips = pipeline(
                [job.prompt for job in part] if pipeline.has_text else None,
                None if any(job.label is None for job in part) else [job.label for job in part],
                num_frames=shape[0],
                height=shape[1],
                width=shape[2],
                num_inference_steps=settings.steps,
                guidance_scale=settings.guidance,
                seed=settings.seed,
                first_index=start,
                batch_size=settings.batch,
                precision=settings.precision,
                output_type="pt",
                progress=told,
            ).frames  # (B, 3, frame, height, width)
            yield from ((start + row, clip_to_frames(clip)) for row, clip in enumerate(clips))

    return made


def _about(
    pipeline: "ClipPipeline",
    job: "Condition",
    index: int,
    shape: Shape,
    fps: float,
    settings: Settings,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """How one file was made: all that it takes to make it again."""
    return {
        **facts,
        "prompt": job.prompt if pipeline.has_text else None,
        "label": None if job.label is None or pipeline.labels is None else pipeline.labels.names[job.label],
        "index": index,
        "frames": shape[0],
        "size": f"{shape[1]}x{shape[2]}",
        "fps": fps,
        "seed": settings.seed,
        "steps": settings.steps,
        "guidance": settings.guidance,
        "precision": settings.precision,
    }


def _facts(found: "Source", pipeline: "ClipPipeline", sampler: str | None) -> dict[str, Any]:
    """What all files of a call share: hashes of the weights, the config and the codec, and the sampler."""
    import mmdit

    return {
        "mmdit": mmdit.__version__,
        **found.origin,
        **(pipeline.config.origin or {}),
        "codec": pipeline.codec.fingerprint,
        "sampler": sampler or type(pipeline.scheduler).__name__,
    }


def _slug(pipeline: "ClipPipeline", job: "Condition") -> str:
    """A few words for a file name, ASCII letters and digits only."""
    words = job.prompt or ("clip" if job.label is None or pipeline.labels is None else pipeline.labels.names[job.label])
    return re.sub(r"[^a-z0-9]+", "-", words.lower())[:48].strip("-") or "clip"


def _size(text: str) -> tuple[int, int]:
    from mmdit.errors import Refused

    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower(), re.ASCII)
    if match is None or len(text) > 20:
        raise Refused("not a size", where="--size", got=repr(text[:40]), expected="HEIGHTxWIDTH, for example 64x48")
    return int(match[1]), int(match[2])


def _device(name: str) -> "torch.device":
    import torch

    from mmdit.errors import Refused

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or ["it cannot be used"])[0]
        raise Refused("no such device here", where="--device", got=f"{name} ({reason})", expected="cpu, ...") from None
    return device


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Shows what the library warns of (words it cannot read, prompts it cut) as notes."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    handler.setLevel(logging.WARNING)
    library = logging.getLogger("mmdit")
    library.addHandler(handler)
    try:
        yield
    finally:
        library.removeHandler(handler)


if __name__ == "__main__":
    run(main)
