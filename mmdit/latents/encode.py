"""Encoding videos and images into a latent store: resumable at any moment, by any number of processes, nothing dropped
without a reason."""

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

from mmdit import files
from mmdit.clips.decode import CROP_RULE, Decoded
from mmdit.clips.reader import ClipReader, default_workers
from mmdit.clips.source import Found
from mmdit.clips.video import frames_to_clip
from mmdit.errors import Refused, Stopped
from mmdit.latents.claims import Claims
from mmdit.latents.codec import Codec
from mmdit.latents.facts import Facts, find_facts, read_facts, sizes_of, write_facts
from mmdit.latents.fidelity import check_fidelity
from mmdit.latents.plan import Planned, check_folder, check_space, left_to_do, plan_clips, read_request_of
from mmdit.latents.report import EncodeReport, Teller, check_any_kept, make_report
from mmdit.latents.request import DTYPES, ClipRules, EncodeOptions, latent_shapes
from mmdit.latents.shards import Recorded, read_shards
from mmdit.latents.store import SHARDS
from mmdit.latents.tables import write_tables
from mmdit.latents.work import Work, make_shards, read_work, work_folder, write_work

TILING_FLOOR = 30.0  # dB of tiled against untiled, on the worst line of pixels of the first clip

Progress = Callable[[int, int, str], None]
"""Told after each clip: clips done, clips in all, and in words how it goes."""
Engine = Callable[[Work], None]
"""Has the shards of a run made by other processes, each of which calls `join`."""


class Team(Protocol):
    """The processes that a launcher started together; accelerate's PartialState is one."""

    num_processes: int
    is_main_process: bool

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
    try:
        if team.is_main_process:
            return _lead(found, folder, codec, (rules, options), codec_name, progress, team, engine)
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
        make_shards(work, codec, Claims(folder, work_folder(folder)), _workers(work.options), lambda *_: None)


def _lead(
    found: Found,
    folder: Path,
    codec: Codec,
    request: tuple[ClipRules, EncodeOptions],
    codec_name: str,
    progress: Progress | None,
    team: Team,
    engine: Engine | None,
) -> EncodeReport:
    """What the main process does: it plans, takes part, and writes the tables."""
    began = time.monotonic()
    rules, options = request
    latent_shapes(codec, rules)  # what can be refused without a look at the sources is
    check_folder(folder)
    settings = {"codec": codec.fingerprint, "dtype": options.dtype, "tiling": codec.tiling}
    with files.lock(folder) as lock:
        files.sweep(folder)
        files.sweep(folder / SHARDS)
        recorded = read_shards(folder, settings)
        facts = look_at(found, folder, rules, options)
        rules = rules.settled(codec, sizes_of(facts))
        shapes = latent_shapes(codec, rules)
        plan = plan_clips(found.clips, facts, rules, settings)
        left = left_to_do(plan, recorded.rows, options.retry_skipped)
        needed = sum(2 * math.prod(shapes[planned.bucket]) for planned in left) * DTYPES[options.dtype].itemsize
        check_space(folder, needed)
        _check_codec(codec, found.folder, left, rules, options)
        work = Work(
            found.folder.absolute(), folder, rules, options, settings, _numbered(left, recorded, options.shard_size)
        )
        work_folder(folder).mkdir(exist_ok=True)
        if team.num_processes > 1 or engine is not None:
            write_work(work)
            lock.share()
            team.wait_for_everyone()
        claims = Claims(folder, work_folder(folder))
        if engine is not None:
            engine(work)
        make_shards(work, codec, claims, _workers(options), Teller(progress, plan, work.shards, recorded, claims))
        team.wait_for_everyone()
        recorded = read_shards(folder, settings)
        check_any_kept(plan, recorded, found.folder)
        about = {"crop": CROP_RULE, "codec": {"name": codec_name, "fingerprint": codec.fingerprint}}
        write_tables(folder, plan, recorded, settings, about | {"labels": found.labels})
        shutil.rmtree(work_folder(folder))
    return make_report(folder, plan, recorded, len(left), time.monotonic() - began, options.max_skipped)


def look_at(found: Found, folder: Path, rules: ClipRules, options: EncodeOptions) -> dict[str, Facts]:
    """The facts of all sources; what is found out is kept in the store's folder."""
    known = read_facts(folder)
    with ClipReader(_workers(options) + 1, deadline=options.deadline) as reader:
        facts = find_facts(found.folder, found.clips, known, reader if rules.needs_probe else None)
    if facts != known:
        write_facts(folder, facts)
    return facts


def _check_codec(codec: Codec, root: Path, left: Sequence[Planned], rules: ClipRules, options: EncodeOptions) -> None:
    """Refuses a codec that is below the floor on the first clip that can be read, or whose tiles can be seen there."""
    if options.psnr_floor is None and codec.tiling is None:
        return
    floor = -math.inf if options.psnr_floor is None else options.psnr_floor
    with ClipReader(1, deadline=options.deadline) as reader:
        for result in reader.read_many(read_request_of(root, planned, rules) for planned in left):
            if isinstance(result, Decoded):
                clip = frames_to_clip(result.frames)[None]
                check_fidelity(codec, clip, floor=floor, tiling_floor=max(floor, TILING_FLOOR))
                return


def _numbered(left: Sequence[Planned], recorded: Recorded, size: int) -> dict[int, Sequence[Planned]]:
    """The clips left to do, in shards with the first numbers that are free."""
    shards: dict[int, Sequence[Planned]] = {}
    free = (number for number in count() if number not in recorded.shards)
    for first, number in zip(range(0, len(left), size), free, strict=False):
        shards[number] = left[first : first + size]
    return shards


def _workers(options: EncodeOptions) -> int:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this run on this machine
    return options.workers or max(1, default_workers() // here)
