"""Encoding videos and images into a latent store: resumable at any moment, by any number of processes, nothing dropped
without a reason."""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmdit import files
from mmdit.clips.decode import CROP_RULE, Decoded
from mmdit.clips.reader import ClipReader
from mmdit.clips.source import Found
from mmdit.clips.video import frames_to_clip
from mmdit.errors import Refused, Stopped
from mmdit.latents.claims import Claims
from mmdit.latents.codec import Codec
from mmdit.latents.fidelity import check_fidelity
from mmdit.latents.layout import SHARDS
from mmdit.latents.plan import (
    Planned,
    check_folder,
    check_space,
    left_to_do,
    plan_source,
    read_request_of,
    row_of,
    settings_of,
    workers_of,
)
from mmdit.latents.report import EncodeReport, Progress, Teller, check_any_kept, make_report
from mmdit.latents.request import DTYPES, ClipRules, EncodeOptions, latent_shapes
from mmdit.latents.shards import Recorded, read_shards
from mmdit.latents.tables import write_tables
from mmdit.latents.work import Work, make_shards, read_work, work_folder, write_work

TILING_FLOOR = 30.0  # dB of tiled against untiled, on the worst line of pixels of the first clip

Engine = Callable[[Work], None]
"""Has the shards of a run made by other processes, each of which calls `join`."""


class Team(Protocol):
    """The processes that a launcher started together; accelerate's PartialState is one."""

    @property
    def num_processes(self) -> int: ...

    @property
    def is_main_process(self) -> bool: ...

    def wait_for_everyone(self) -> None: ...


@dataclass(frozen=True)
class Alone:
    """A team of one."""

    num_processes: int = 1
    is_main_process: bool = True

    def wait_for_everyone(self) -> None:
        pass


DEFAULTS = EncodeOptions()
ALONE = Alone()


def encode_clips(
    found: Found,
    store_folder: str | os.PathLike[str],
    codec: Codec,
    rules: ClipRules,
    options: EncodeOptions = DEFAULTS,
    *,
    codec_name: str = "",
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
    team: Team = ALONE,
    engine: Engine | None = None,
) -> EncodeReport | None:
    """Encodes the clips that `rules` cut from the sources into a latent store.

    A call that was ended, at whatever moment, goes on when it is made again, and ends with the same files as one that
    was not. A store that is whole already costs a look at the sources; added and changed ones are encoded, changed
    captions and labels written down; latents that are not used any more stay in their shards until they are pruned.

    Args:
        codec_name: the name or folder that the codec was loaded from, for store.json.
        command: the words of the `mmdit encode` that this is, for store.json.
        team: with others of a launcher, all of which make this call; the main one plans and writes the tables.
        engine: has the shards made elsewhere.

    Returns:
        What became of every clip; None in the processes that are not the main one.

    Raises:
        Refused: an impossible request, a codec or type other than the store's, another process at work, no clip kept,
            or a codec below the floor.
        TooManySkipped: done, but over `options.max_skipped`.
        Stopped: the disk is full or cannot be written; what is done is kept.
    """
    folder = Path(store_folder)
    latent_shapes(codec, rules)  # what can be refused without a look at the sources is
    try:
        if team.is_main_process:
            run = _Run(found, folder, codec, rules, options)
            made = {"source": str(found.folder.absolute()), "folder": os.getcwd(), "command": command}
            about = {"made": made, "codec": {"name": codec_name, "fingerprint": codec.fingerprint}}
            return _lead(run, about, progress, team, engine)
        team.wait_for_everyone()  # until the work is written down
        join(folder, codec)
        team.wait_for_everyone()
        return None
    except OSError as error:
        raise Stopped(
            "the store cannot be written", where=error.filename or folder, got=error.strerror or error,
            fix="make room there and run the same command again: it goes on where it ended",
        ) from error  # fmt: skip


def join(folder: Path, codec: Codec, numbers: Sequence[int] | None = None) -> None:
    """Takes part in the run that is under way in a folder: makes shards (of `numbers`: any) until all are done."""
    with files.lock(folder, shared=True):
        work = read_work(folder)
        if work.settings["codec"] != codec.fingerprint:
            raise Refused(
                "not the codec of this run", where=folder, got=codec.fingerprint, expected=work.settings["codec"]
            )
        if numbers is not None:
            work.shards = {number: work.shards[number] for number in numbers}
        with Claims(folder, work_folder(folder)) as claims:
            make_shards(work, codec, claims, workers_of(work.options), lambda *_: None)


@dataclass
class _Run:
    """What the main process of a run has to do with."""

    found: Found
    folder: Path
    codec: Codec
    rules: ClipRules
    options: EncodeOptions

    @property
    def settings(self) -> dict[str, Any]:
        """What all clips of a store share."""
        return settings_of(self.codec, self.options)


def _lead(
    run: _Run, about: dict[str, Any], progress: Progress | None, team: Team, engine: Engine | None
) -> EncodeReport:
    """What the main process does: it plans, takes part, and writes the tables."""
    began = time.monotonic()
    folder, settings = run.folder, run.settings
    check_folder(folder)
    with files.lock(folder) as lock:
        files.sweep(folder)
        files.sweep(folder / SHARDS)
        recorded = read_shards(folder, settings)
        planned = plan_source(run.found, run.codec, run.rules, run.options, folder)
        run.rules, plan = planned.rules, planned.clips
        left = left_to_do(plan, recorded.rows, run.options.retry_skipped)
        _check(run, left)
        shards = _numbered(left, recorded, run.options.shard_size)
        work = Work(run.found.folder.absolute(), folder, run.rules, run.options, settings, shards)
        work_folder(folder).mkdir(exist_ok=True)
        if team.num_processes > 1 or engine is not None:
            write_work(work)
            lock.share()
            team.wait_for_everyone()
        if engine is not None:
            engine(work)
        with Claims(folder, work_folder(folder)) as claims:
            tell = Teller(progress, plan, shards, recorded, claims)
            make_shards(work, run.codec, claims, workers_of(run.options), tell)
        team.wait_for_everyone()
        recorded = read_shards(folder, settings)
        check_any_kept((row_of(planned, recorded.rows)["reason"] for planned in plan), run.found.folder)
        write_tables(folder, plan, recorded, settings, about | {"crop": CROP_RULE, "labels": run.found.labels})
        shutil.rmtree(work_folder(folder))
    return make_report(folder, plan, recorded, len(left), time.monotonic() - began, run.options.max_skipped)


def _check(run: _Run, left: Sequence[Planned]) -> None:
    """Refuses what has no room on the disk, and a codec that does badly on the first clip."""
    shapes = latent_shapes(run.codec, run.rules)
    needed = sum(2 * math.prod(shapes[planned.bucket]) for planned in left) * DTYPES[run.options.dtype].itemsize
    check_space(run.folder, needed)
    floor = run.options.psnr_floor
    if floor is None and run.codec.tiling is None:
        return
    with ClipReader(1, deadline=run.options.deadline) as reader:
        for result in reader.read_many(read_request_of(run.found.folder, planned, run.rules) for planned in left):
            if isinstance(result, Decoded):
                clip = frames_to_clip(result.frames)[None]
                least = -math.inf if floor is None else floor
                check_fidelity(run.codec, clip, floor=least, tiling_floor=max(least, TILING_FLOOR))
                return


def _numbered(left: Sequence[Planned], recorded: Recorded, size: int) -> dict[int, Sequence[Planned]]:
    """The clips left to do, in shards with the first numbers that are free."""
    firsts = range(0, len(left), size)
    return {number: left[i : i + size] for i, number in zip(firsts, recorded.free_numbers(), strict=False)}
