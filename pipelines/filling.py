"""What one call asks for, made into one file or a folder of files: stopped and started again, it goes on."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from mmdit import files
from mmdit.errors import Refused, Stopped
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.loading import Source
from mmdit.pipelines.manifest import Row, check_folder, write_manifest
from mmdit.pipelines.output import output_format, read_frames, read_note
from mmdit.pipelines.process_group import Group
from mmdit.pipelines.prompt_list import Entry
from mmdit.pipelines.source_sizes import check_source_size
from mmdit.pipelines.wishes import Sampling, Wish, batches, grant, wish_note
from mmdit.report.sheet import contact_sheet
from mmdit.training.processes import until_sigterm

SHEET = "sheet.png"
LONGEST_NAME = 200  # bytes: of the 255 that file systems allow, temporary names need some
SHEET_CLIPS = 100  # shown at most
SHEET_SIDE = 160  # pixels of a frame's longer side, at most


@dataclass(frozen=True)
class Call:
    """What is the same for all files of one call.

    `out` is a file or a folder; `format`, `frames`, `size` and `fps` are None for what suits the model.
    """

    out: Path
    format: str | None
    count: int
    frames: int | None
    size: tuple[int, int] | None
    fps: float | None
    batch: int
    sheet: bool
    sampling: Sampling


def plan(call: Call, entries: Sequence[Entry], source: Source, codec: str | None = None) -> list[Wish]:
    """A wish for each file, `call.count` for each entry, before weights are loaded.

    A clip of an entry with a seed of its own is a function of that seed and its number among that entry's clips; others
    are of the call's seed and their place in the list.

    Raises Refused, naming the row, for sizes that the model cannot make, and for two files of one name.
    """
    single = output_format(call.out)
    total = len(entries) * call.count
    wishes: list[Wish] = []
    names, folders = set[str](), set[str]()
    sizes: dict[object, tuple[int, int, int] | None] = {}
    for entry in entries:
        frames, size = call.frames if entry.frames is None else entry.frames, entry.size or call.size
        try:
            if (frames, size) not in sizes:  # a list is long, its sizes are few
                sizes[frames, size] = check_source_size(source, frames=frames, height=size and size[0],
                                                        width=size and size[1], clips=1, codec=codec)  # fmt: skip
        except Refused as error:
            raise Refused(f"{entry.where}: {error}") if entry.where else error from None
        asked = sizes[frames, size]
        kind = single or call.format or ("png" if (asked[0] if asked else frames) == 1 else "mp4")
        for number in range(call.count):
            at = len(wishes)
            file = call.out.name if single else _file_name(entry, at, number, kind, call.count, total)
            _check_file(file, names, folders, asked, entry.where)
            wishes.append(Wish(
                file, prompt=entry.prompt, label=entry.label, negative=entry.negative or "", frames=frames, size=size,
                seed=entry.seed, index=at if entry.seed is None else number, guidance=entry.guidance,
            ))  # fmt: skip
    for frames, size, clips in {(wishes[b[0]].frames, wishes[b[0]].size, len(b)) for b in batches(wishes, call.batch)}:
        check_source_size(source, frames=frames, height=size and size[0], width=size and size[1], clips=clips,
                          codec=codec)  # fmt: skip
    return wishes


def fill(
    call: Call,
    pipeline: ClipPipeline,
    wishes: Sequence[Wish],
    facts: dict[str, Any],
    places: dict[str, Any],
    group: Group,
    progress: Callable[[int, int], None],
) -> None:
    """Makes the files; what is there and fits is not made again.

    Beside a single file lies FILE.json, in a folder manifest.json: what is in each file, and the `places` on this
    machine of what it was made from (`manifest.PLACES`).

    Raises:
        Refused: the folder holds the clips of another call, or another process works there.
        Stopped: by SIGTERM; every file is whole, and the same call goes on.
    """
    rows = [
        {"file": wish.file, **places, **facts, **wish_note(pipeline, wish, i, call.sampling, call.fps)}
        for i, wish in enumerate(wishes)
    ]
    if output_format(call.out):
        if group.is_first:
            _make(call, pipeline, wishes, call.out.parent, facts, Group(0, 1, group.device), progress)
            files.write_json(call.out.with_name(f"{call.out.name}.json"), {**rows[0], **read_note(call.out)})
        return
    with group.hold(call.out):
        check_folder(call.out, rows)
        group.wait()  # all have looked before anything is written
        if group.is_first:
            write_manifest(call.out, rows)
        group.wait()
        try:
            _make(call, pipeline, wishes, call.out, facts, group, progress)
            group.wait()
        finally:
            if group.is_first:
                write_manifest(call.out, rows)
        if call.sheet and group.is_first:
            write_sheet(call.out, rows)


def _make(
    call: Call,
    pipeline: ClipPipeline,
    wishes: Sequence[Wish],
    folder: Path,
    facts: dict[str, Any],
    group: Group,
    progress: Callable[[int, int], None],
) -> None:
    with until_sigterm() as stopping:

        def told(done: int, steps: int) -> None:
            progress(done, steps)
            if stopping():
                raise Stopped("stopped by SIGTERM", where=call.out, got=f"{done} of {steps} steps",
                              fix="all files are whole; the same command goes on")  # fmt: skip

        grant(pipeline, wishes, folder, sampling=call.sampling, metadata=facts, batch_size=call.batch, fps=call.fps,
              share=(group.index, group.count), progress=told)  # fmt: skip


def write_sheet(folder: Path, rows: Sequence[Row]) -> None:
    """sheet.png: a row for each of the first clips, with its prompt or label and its seed beneath."""
    shown = rows[:SHEET_CLIPS]
    clips = [_small(read_frames(folder / row["file"])) for row in shown]
    captions = [f"{row['prompt'] or row['label'] or 'clip'} (seed {row['seed']}, {row['index']})" for row in shown]
    contact_sheet(clips, captions, folder / SHEET, scale=1)


def _small(frames: np.ndarray) -> np.ndarray:
    """At most nine frames, none larger than a sheet has room for."""
    picked = frames[np.linspace(0, len(frames) - 1, min(9, len(frames))).round().astype(int)]
    shrunk = min(1.0, SHEET_SIDE / max(frames.shape[1:3]))
    size = max(1, round(frames.shape[2] * shrunk)), max(1, round(frames.shape[1] * shrunk))
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in picked])


def _file_name(entry: Entry, at: int, number: int, kind: str, count: int, total: int) -> str:
    """The name that the entry asks for, or a number and a few words, ASCII letters and digits only."""
    if entry.out is None:
        words = re.sub(r"[^a-z0-9]+", "-", (entry.prompt or entry.label or "clip").lower())[:48].strip("-") or "clip"
        return f"{at:0{len(str(total - 1))}d}-{words}.{kind}"
    path = PurePosixPath(entry.out)
    path = path if path.suffix else path.with_name(f"{path.name}.{kind}")
    return str(path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"))


def _check_file(file: str, names: set[str], folders: set[str], asked: tuple[int, int, int] | None, where: str) -> None:
    """Refused for a file that cannot be beside those before it; adds it to the names and folders."""
    above = [str(folder) for folder in PurePosixPath(file).parents]
    if file in names or file == SHEET:
        raise Refused("the same file twice", where=where or None, got=file)
    if file in folders or names.intersection(above):
        raise Refused("a file and a folder of one name", where=where or None, got=file)
    if any(len(part.encode()) > LONGEST_NAME for part in PurePosixPath(file).parts):
        raise Refused("the name of a file is too long", where=where or None, got=f"{file[:40]}...",
                      expected=f"at most {LONGEST_NAME} bytes")  # fmt: skip
    names.add(file)
    folders.update(above)
    if file.lower().endswith(".mp4") and asked and (asked[1] % 2 or asked[2] % 2):
        raise Refused("an mp4 clip needs an even height and width", where=where or None, got=f"{asked[1]}x{asked[2]}",
                      fix="ask for another --size or --format")  # fmt: skip
