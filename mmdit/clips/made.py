"""The made fashion clips: a folder of mp4 files with its captions, drawn from a seed.

Neither how many clips there are nor how many workers make them changes a clip.
"""

import csv
import errno
import io
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from mmdit import files
from mmdit.clips.film import Scene, end_with_parent, film
from mmdit.clips.plan import (
    BACKGROUNDS,
    COLOURS,
    COLUMNS,
    GARMENTS,
    MOTIONS,
    PATTERNS,
    SPLITS,
    MadeClip,
    held_out_triples,
    plan_clips,
    prompts,
)
from mmdit.clips.video import Frames
from mmdit.errors import Refused, Stopped

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "COLUMNS",
    "GARMENTS",
    "MOTIONS",
    "PATTERNS",
    "SPLITS",
    "MadeClip",
    "held_out_triples",
    "make_clips",
    "plan_clips",
    "prompts",
    "render",
]

VERSION = 1  # of the pictures: raised when a clip of the same seed and number would look different
SMALLEST, LARGEST = 32, 1024  # height and width
MOST_PIXELS = 32 * 2**20  # of a clip, which is drawn in memory: about 1.5 GB
Progress = Callable[[int, int], None]


def render(clip: MadeClip, size: tuple[int, int] = (64, 48), frames: int = 17, fps: float = 8) -> Frames:
    """The frames of a made clip, uint8 (frame, height, width, 3), at any even size (height, width)."""
    _check(size, frames, fps)
    return _scene(clip, size, frames, fps).render()


def make_clips(
    folder: str | Path,
    count: int,
    seed: int = 0,
    size: tuple[int, int] = (64, 48),
    frames: int = 17,
    fps: float = 8,
    variety: float = 1.0,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[MadeClip]:
    """Makes `count` clips in `folder`: clips/NNNNNN.mp4, captions.csv (written last) and made.json (the settings).

    Run again, it keeps whole files and makes what is missing; the folder it ends with is the same, whatever happened
    before and however many `workers` (processes) there are. `variety` is that of `plan_clips`. `progress(done, count)`
    is called as clips are ready. With more than one worker, a script that calls this needs the usual
    `if __name__ == "__main__":`.

    Raises Refused for settings that cannot be, for a folder that holds anything else or cannot be written to, and
    Stopped when a worker dies or the disk is full.
    """
    _check(size, frames, fps)
    clips = plan_clips(count, seed, variety)
    if workers < 1:
        raise Refused("there must be someone to work", where="workers", got=workers, expected="at least 1")
    folder = Path(folder)
    # floats, so that 8 and 8.0 are the same settings, byte for byte
    settings = {"version": VERSION, "count": count, "seed": seed, "size": list(size), "frames": frames}
    settings |= {"fps": float(fps), "variety": float(variety)}
    try:
        _agree(folder, settings)  # before the lock, which is a file in the folder
        with files.lock(folder):
            _agree(folder, settings)
            if not (folder / "made.json").exists():
                files.write_json(folder / "made.json", settings)
            (folder / "clips").mkdir(exist_ok=True)
            files.sweep(folder)
            files.sweep(folder / "clips")
            jobs = [_job(folder, clip, size, frames, fps) for clip in clips if _is_missing(folder / clip.path)]
            _make(jobs, workers, len(clips) - len(jobs), len(clips), progress or (lambda done, count: None))
            files.write_text(folder / "captions.csv", _captions(clips))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise Stopped("the disk is full", where=folder, fix="make room and run it again: it goes on") from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT):
            reason = os.strerror(error.errno).lower()
            raise Refused("the folder cannot be written to", where=folder, got=reason, fix="name another") from None
        raise
    return clips


def _scene(clip: MadeClip, size: tuple[int, int], frames: int, fps: float) -> Scene:
    return Scene(**clip.attributes, look=clip.look, size=size, frames=frames, fps=fps)


def _job(
    folder: Path, clip: MadeClip, size: tuple[int, int], frames: int, fps: float
) -> tuple[Path, Scene, dict[str, str]]:
    return folder / clip.path, _scene(clip, size, frames, fps), {**clip.attributes, "caption": clip.caption}


def _is_missing(path: Path) -> bool:
    """Whether a clip is still to be made; after a power failure a file may be there and empty."""
    return not path.is_file() or path.stat().st_size == 0


def _check(size: tuple[int, int], frames: int, fps: float) -> None:
    got, sides = "x".join(map(str, size)), f"{SMALLEST} to {LARGEST} a side"
    near = "use " + "x".join(str(min(max(side + side % 2, SMALLEST), LARGEST)) for side in size)
    if any(side % 2 for side in size):
        raise Refused("a clip's height and width must be even", where="size", got=got, fix=near)
    if min(size) < SMALLEST or max(size) > LARGEST:
        raise Refused("such a size cannot be drawn", where="size", got=got, expected=sides, fix=near)
    if frames < 1:
        raise Refused("a clip needs frames", where="frames", got=frames, expected="at least 1")
    if frames * size[0] * size[1] > MOST_PIXELS:
        most = MOST_PIXELS // (size[0] * size[1])
        raise Refused("a clip of that many pixels is too large", where="frames", got=frames, expected=f"at most {most}")
    if not 0 < fps <= 240:
        raise Refused("such a frame rate cannot be made", where="fps", got=fps, expected="above 0, at most 240")


def _agree(folder: Path, settings: dict[str, object]) -> None:
    """Sees to it that the folder is new, empty, or was begun with these very settings."""
    about = folder / "made.json"
    if not folder.exists():
        return
    if not folder.is_dir():
        raise Refused("this is not a folder", where=folder, fix="name another folder")
    if not about.exists():
        others = sorted(p.name for p in folder.iterdir() if p.name != ".lock" and not p.name.startswith(files.PART))
        if others:
            raise Refused(
                "the folder holds other things", where=folder, got=others[0], expected="a new or empty folder",
                fix="name another",
            )  # fmt: skip
        return
    try:
        found = json.loads(about.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise Refused("this file cannot be read", where=about, fix="name another folder")
    for name, value in settings.items():
        if found.get(name) != value:
            raise Refused(
                "the folder holds clips made with other settings", where=f"{folder}, {name}", got=value,
                expected=found.get(name), fix="name another folder, or ask for the same settings",
            )  # fmt: skip


def _captions(clips: list[MadeClip]) -> str:
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(clip.row() for clip in clips)
    return table.getvalue()


def _make(
    jobs: list[tuple[Path, Scene, dict[str, str]]], workers: int, done: int, count: int, progress: Progress
) -> None:
    """Films the jobs, in this process or in `workers` others."""
    progress(done, count)
    if workers == 1 or len(jobs) < 2 * workers:
        for at, job in enumerate(jobs, done + 1):
            film(job)
            progress(at, count)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent)
    try:
        for at, _ in enumerate(pool.map(film, jobs, chunksize=4), done + 1):
            progress(at, count)
    except BrokenProcessPool:
        raise Stopped("a worker ended before its work", fix="run it again: it goes on; or use one worker") from None
    finally:
        pool.shutdown(cancel_futures=True)
