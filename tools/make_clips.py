"""`mmdit make-clips`: draws the made fashion clips into a folder."""

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer


def main(
    out: Annotated[Path, typer.Argument(help="Folder to make: clips/, captions.csv and made.json.")],
    count: Annotated[int, typer.Option(help="How many clips.")] = 1500,
    seed: Annotated[int, typer.Option(help="The same seed gives the same clips.")] = 0,
    size: Annotated[str, typer.Option(help="HEIGHTxWIDTH in pixels, both even.")] = "64x48",
    frames: Annotated[int, typer.Option(help="Frames in a clip.")] = 17,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 8.0,
    variety: Annotated[float, typer.Option(help="From 0, the same person in the same light in all clips, to 1.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes at work; 0 is one for each core.")] = 0,
) -> None:
    """Draws fashion clips to learn from: mp4 files with captions and labels.

    Five garments, eight colours, three patterns, five motions and five backgrounds, divided into train, validation and
    held_out (combinations of garment, colour and motion that train never shows). Run again, it goes on where it ended.

    Example: mmdit make-clips clips --count 1500 --seed 1 --size 64x48 --frames 17 --fps 8
    """
    from collections import Counter

    from mmdit.clips.made import make_clips
    from mmdit.tools.progress import progress_line

    with progress_line("make-clips", "clips") as advance:
        clips = make_clips(
            out,
            count,
            seed,
            _size(size),
            frames,
            fps,
            variety,
            workers=workers or _cores(),
            progress=lambda done, total: advance(done, total, ""),
        )
    splits = Counter(clip.split for clip in clips)
    print(f"{len(clips)} clips of {frames} frames, {size}: " + ", ".join(f"{n} {name}" for name, n in splits.items()))
    for clip in clips[:3]:
        print(f"  {out / clip.path}  {clip.caption}")
    print(f"captions, labels and splits are in {out / 'captions.csv'}")
    print(f"next: mmdit encode {shlex.quote(str(out))} --out STORE")


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _size(text: str) -> tuple[int, int]:
    from mmdit.errors import Refused

    found = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text)
    if found is None:
        raise Refused("this is no size", where="--size", got=repr(text), expected="HEIGHTxWIDTH", fix="such as 64x48")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    from mmdit.tools.cli import run

    run(main)
