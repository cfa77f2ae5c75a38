"""`mmdit demo`: the whole way in one command, offline and without a GPU."""

import json
import os
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.pipelines.wishes import Wish


COLUMNS = 8  # of gallery.webp


@dataclass(frozen=True)
class Settings:
    """How much of everything; what a demo folder is made with."""

    quick: bool
    seed: int = 0
    clips: int = 1300
    frames: int = 17
    size: tuple[int, int] = (64, 48)
    fps: float = 8
    variety: float = 0.1
    """Of the made clips: nearly the same person and light in all, so that minutes are enough to learn them."""
    train: tuple[str, ...] = ()
    """Changes to the recipe configs/demo_fashion.yaml."""
    prompts: int = 128
    """Generated clips of trained combinations, by prompt."""
    held_out_prompts: int = 64
    """Generated clips of combinations that training never had, by prompt."""
    labels_each: int = 4
    """Generated clips for each label."""
    stills: int = 8
    """Generated images."""
    real_clips: int = 108
    """Real clips of each kind that are scored beside them."""
    shown: int = 4
    """Reconstructions that are shown."""
    sampling_steps: int = 10
    guidance: float = 2.0
    batch: int = 32


QUICK = Settings(
    quick=True,
    clips=96,
    train=("steps=12", "data.batch_size=16", "validate_every=6", "log_every=1", "validation_clips=8"),
    prompts=6,
    held_out_prompts=4,
    labels_each=1,
    stills=2,
    real_clips=8,
    shown=2,
    sampling_steps=4,
)


def main(
    out: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A minute-long version that learns nothing, for tests.")
    ] = False,
) -> None:
    """Makes fashion clips, encodes them, trains a video DiT, generates new clips, scores them and writes a report.

    Needs no network and no GPU. Stopped at any moment, the same command goes on where it was.

    Example: mmdit demo --out demo
    """
    make_demo(out, QUICK if quick else Settings(quick=False))
    _say_where_to_look(out)


def make_demo(out: Path, settings: Settings) -> None:
    """All the steps, each one skipped or taken up where an earlier call left it; then summary, picture and report."""
    from mmdit import files
    from mmdit.report.demo import write_demo_report
    from mmdit.report.summary import demo_summary
    from mmdit.tools.clock import step_clock

    _agree(out, settings)
    with files.lock(out):
        with step_clock(out / "timings.json") as clock:
            for number, (name, step) in enumerate(STEPS.items(), start=1):
                print(f"[{number}/{len(STEPS)}] {name}", flush=True)
                with clock(name):
                    step(out, settings)
        files.write_json(out / "summary.json", demo_summary(out, asdict(settings), list(STEPS)))
        write_demo_report(out)
        _picture(out, settings)


def _agree(out: Path, settings: Settings) -> None:
    """The folder is new, or holds a demo of the same settings."""
    from mmdit import files
    from mmdit.errors import Refused

    path, now = out / "demo.json", json.loads(json.dumps(asdict(settings)))
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise Refused(
                    "the folder holds a demo with other settings", where=out, got=f"{key}={now.get(key)}",
                    expected=f"{key}={before.get(key)}", fix="name another folder with --out, or remove this one",
                )  # fmt: skip
        return
    if out.exists() and (not out.is_dir() or any(p.name != ".lock" for p in out.iterdir())):
        raise Refused(
            "the folder holds something else", where=out, expected="a new folder, or a demo's", fix="use --out"
        )
    files.write_json(path, now)


def _make_clips(out: Path, settings: Settings) -> None:
    from mmdit.clips.made import make_clips
    from mmdit.tools.progress import progress_line

    with progress_line("make clips", "clips") as advance:
        make_clips(
            out / "clips", settings.clips, settings.seed, settings.size, settings.frames, settings.fps,
            settings.variety, workers=os.cpu_count() or 1, progress=lambda done, count: advance(done, count, ""),
        )  # fmt: skip


def _encode(out: Path, settings: Settings) -> None:
    from mmdit.clips.buckets import Bucket
    from mmdit.clips.source import find_source
    from mmdit.latents.codec import load_codec
    from mmdit.latents.encode import encode_clips
    from mmdit.latents.request import ClipRules
    from mmdit.tools.progress import progress_line

    rules = ClipRules((Bucket(settings.frames, *settings.size),), settings.fps)
    with progress_line("encode", "clips") as advance:
        encode_clips(
            find_source(out / "clips"), out / "store", load_codec("fashion"), rules,
            codec_name="fashion", progress=lambda done, count, words: advance(done, count, ""),
        )  # fmt: skip


def _train(out: Path, settings: Settings) -> None:
    from mmdit.config import load_config
    from mmdit.pipelines.training_samples import prepare_samples
    from mmdit.tools.progress import progress_line
    from mmdit.training.config import RunConfig
    from mmdit.training.loop import train

    recipe = load_config(RunConfig, "demo_fashion", [f"data.store={out / 'store'}", *settings.train])
    with progress_line("train", "steps") as advance:
        train(
            recipe,
            out / "run",
            sample=prepare_samples,
            progress=lambda step, steps, now: advance(
                step, steps, f"loss {now['loss']:.3f}, {now['clips_per_s']:.0f} clips/s"
            ),
        )


def _wishes(settings: Settings) -> "list[Wish]":
    from mmdit.clips.made import GARMENTS, prompts
    from mmdit.pipelines.wishes import Wish

    attributes = ("garment", "colour", "pattern", "motion")
    wishes = []
    asked = (("trained", "validation", settings.prompts), ("held-out", "held_out", settings.held_out_prompts))
    for combination, split, count in asked:
        for number, row in enumerate(prompts(split, count, settings.seed)):
            wanted = {name: row[name] for name in attributes}
            name = f"{combination}/{number:03d}.mp4"
            wishes.append(Wish(name, prompt=row["caption"], combination=combination, wanted=wanted))
    for number in range(settings.labels_each * len(GARMENTS)):
        label = GARMENTS[number % len(GARMENTS)]
        wishes.append(Wish(f"labels/{number:03d}.mp4", label=label, wanted={"garment": label}))
    for number, row in enumerate(prompts("train", settings.stills, settings.seed + 1)):
        wishes.append(Wish(f"stills/{number:03d}.png", prompt=row["caption"], frames=1))
    return wishes


def _generate(out: Path, settings: Settings) -> None:
    from mmdit import files
    from mmdit.pipelines.loading import call_facts, find_source, load_pipeline
    from mmdit.pipelines.wishes import Sampling, as_json, grant
    from mmdit.tools.progress import progress_line

    source = find_source(out / "run")
    pipeline = load_pipeline(source)
    pipeline.set_progress_bar_config(disable=True)
    wishes = _wishes(settings)
    files.write_json(out / "generated" / "wishes.json", as_json(wishes))
    sampling = Sampling(settings.seed, settings.sampling_steps, settings.guidance)
    with progress_line("generate", "steps") as advance:
        grant(
            pipeline, wishes, out / "generated", sampling=sampling, metadata=call_facts(source, pipeline),
            batch_size=settings.batch,
            progress=lambda done, count: advance(done, count, ""),
        )  # fmt: skip


def _score(out: Path, settings: Settings) -> None:
    from mmdit import files
    from mmdit.evaluation.demo import score_demo
    from mmdit.evaluation.probe import load_probe
    from mmdit.latents.codec import load_codec

    scores = score_demo(out, load_probe(), load_codec("fashion"), real_clips=settings.real_clips, shown=settings.shown)
    files.write_json(out / "scores.json", scores)


def _picture(out: Path, settings: Settings) -> None:
    """gallery.webp: generated clips side by side, of trained combinations in the first row and held-out ones below."""
    from mmdit.clips.decode import read_clip
    from mmdit.report.sheet import write_moving_grid

    wishes = [wish for wish in _wishes(settings) if wish.prompt is not None and wish.frames is None]
    rows = [[wish for wish in wishes if wish.combination == kind][:COLUMNS] for kind in ("trained", "held-out")]
    columns = min(len(row) for row in rows)
    clips = [
        read_clip(out / "generated" / wish.file, frames=settings.frames, size=settings.size, fps=settings.fps).frames
        for row in rows
        for wish in row[:columns]
    ]
    write_moving_grid(clips, out / "gallery.webp", columns=columns, fps=settings.fps)


STEPS: dict[str, Callable[[Path, Settings], None]] = {
    "make-clips": _make_clips,
    "encode": _encode,
    "train": _train,
    "generate": _generate,
    "score": _score,
}


def _say_where_to_look(out: Path) -> None:
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    for row in summary["scores"]:
        if row["clips"] == "generated":
            print(
                f"  {row['combinations']:>8} combinations by {row['condition']:<6} {row['attribute']:<8}"
                f" {row['accuracy']:6.1%} of {row['count']}"
            )
    print(f"done in {summary['timings']['total']:.0f} s, peak memory {summary['timings']['peak_memory_gib']} GiB")
    print(
        f"look at {out / 'report.html'} (the clips are in {out / 'generated'}, the figures in {out / 'summary.json'})"
    )
    run_folder = shlex.quote(str(out / "run"))
    print(f'next: mmdit generate {run_folder} --prompt "a striped red coat, seen turning round" --out coat.mp4')


if __name__ == "__main__":
    run(main)
