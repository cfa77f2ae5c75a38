"""Encoding a folder of videos into a latent store: resumable at any moment, nothing dropped without a reason."""

import math
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdit import files
from mmdit.clips.decode import CROP_RULE, ReaderName
from mmdit.clips.reader import ClipReader, default_workers
from mmdit.clips.source import find_clips
from mmdit.errors import OverBudget, Refused, Stopped
from mmdit.latents.codec import Codec
from mmdit.latents.layout import SHARDS
from mmdit.latents.plan import (
    DTYPES,
    Planned,
    check_folder,
    check_request,
    check_space,
    left_to_do,
    plan_clips,
    read_request_of,
)
from mmdit.latents.shards import Recorded, read_shards
from mmdit.latents.tables import write_tables
from mmdit.latents.work import ShardMaker

_AHEAD_BYTES = 512 << 20  # decoded frames that wait for the codec

Progress = Callable[[int, int, int], None]
"""Told after each batch: clips done, clips in all, clips skipped so far."""


@dataclass(frozen=True)
class EncodeReport:
    """What became of every clip of the folder."""

    store: Path
    planned: int
    kept: int
    skipped: int
    reasons: dict[str, int]
    """Kind of fault to number of clips, the commonest first."""
    encoded: int
    """Clips that this call encoded; the others were there before."""
    same_content: int
    """Clips whose span and bytes are those of another one: they share its latent."""
    without_caption: int
    unused: int
    """Latents in the store that no clip of the folder uses any more."""
    psnr: float | None
    """Mean reconstruction PSNR over the sampled clips, in dB."""
    seconds: float


class TooManySkipped(OverBudget):
    """The store is whole, but more clips were skipped than allowed. `report` has the counts."""

    def __init__(self, report: EncodeReport, allowed: int) -> None:
        self.report = report
        first = next(iter(report.reasons.items()))
        super().__init__(
            "more clips were skipped than the budget allows", where=report.store,
            got=f"{report.skipped} of {report.planned}, most of them ({first[1]}) {first[0]}",
            expected=f"at most {allowed}",
            fix="see quarantine.parquet there, and repair the files or raise --max-skipped",
        )  # fmt: skip


def encode_folder(
    source_folder: str | os.PathLike[str],
    store_folder: str | os.PathLike[str],
    codec: Codec,
    *,
    frames: int,
    size: tuple[int, int],
    fps: float,
    captions: str | os.PathLike[str] | None = None,
    batch_size: int = 16,
    shard_size: int = 256,
    workers: int | None = None,
    max_skipped: int | float = 0.05,
    dtype: str = "float16",
    psnr_every: int = 16,
    deadline: float = 60.0,
    reader: ReaderName = "pyav",
    codec_name: str = "",
    retry_skipped: bool = False,
    command: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> EncodeReport:
    """Encodes the clips of a folder (see `find_clips`), one span of each video, into a latent store.

    A call that was ended, at whatever moment, goes on when it is made again, and ends with the same files as one that
    was not. A store that is whole already costs a look at the sources; added videos are encoded, changed captions and
    labels written down; latents of removed videos stay in their shards, unused.

    Args:
        size: (height, width) in pixels.
        batch_size: clips a call of the codec.
        shard_size: clips a shard; at most that many are encoded again after an interruption.
        workers: decoding processes; None: one less than there are processors.
        max_skipped: clips that may be skipped, as a number (int) or as a share of all (float).
        dtype: the type in which mean and deviation are stored: float16, bfloat16 or float32.
        psnr_every: the reconstruction PSNR is measured on one clip in so many, chosen by content; 0: on none.
        deadline: seconds that the decoding of one clip may take.
        codec_name: the name or folder that the codec was loaded from, for store.json.
        command: the words of the `mmdit encode` that this is, for store.json.
        retry_skipped: read the clips again that were skipped before.

    Raises:
        Refused: an impossible request, other settings than the store's, another process at work, no usable clip.
        TooManySkipped: done, but over `max_skipped`.
        Stopped: the disk is full or cannot be written; what is done is kept.
    """
    began = time.monotonic()
    shape = check_request(codec, frames, size, fps, dtype, min(batch_size, shard_size))
    source_folder, store_folder = Path(source_folder), Path(store_folder)
    clips = find_clips(source_folder, captions)
    check_folder(store_folder)
    settings = {"codec": codec.fingerprint, "dtype": dtype, "tiling": None}
    request = {"frames": frames, "size": list(size), "fps": float(fps), "crop": CROP_RULE, "reader": reader}
    plan = plan_clips(source_folder, clips, settings | request)
    try:
        with files.lock(store_folder):
            files.sweep(store_folder)
            files.sweep(store_folder / SHARDS)
            recorded = read_shards(store_folder, settings)
            left = left_to_do(plan, recorded.rows, retry_skipped)
            check_space(store_folder, len(left) * 2 * math.prod(shape) * DTYPES[dtype].itemsize)
            tell = _teller(progress, plan, left, recorded)
            work = ShardMaker(codec, store_folder, settings, recorded, batch_size, psnr_every, tell)
            workers = default_workers() if workers is None else workers
            ahead = min(2 * batch_size, _AHEAD_BYTES // (3 * frames * math.prod(size)))
            with ClipReader(workers, deadline=deadline, ahead=ahead) as pool:
                results = pool.read_many(read_request_of(source_folder, planned.clip, request) for planned in left)
                for first in range(0, len(left), shard_size):
                    work.make(left[first : first + shard_size], results)
            _check_any_kept(plan, recorded, source_folder)
            made = {"source": str(source_folder.absolute()), "folder": os.getcwd(), "command": command}
            about = {"made": made, "crop": CROP_RULE, "codec": {"name": codec_name, "fingerprint": codec.fingerprint}}
            write_tables(store_folder, plan, recorded, settings, about)
    except OSError as error:
        raise Stopped(
            "the store cannot be written", where=error.filename or store_folder, got=error.strerror or error,
            fix="make room there and run the same command again: it goes on where it ended",
        ) from error  # fmt: skip
    report = _report(store_folder, plan, recorded, len(left), time.monotonic() - began)
    allowed = max_skipped if isinstance(max_skipped, int) else math.floor(max_skipped * len(plan))
    if report.skipped > allowed:
        raise TooManySkipped(report, allowed)
    return report


def _teller(progress: Progress | None, plan: Sequence[Planned], left: Sequence[Planned], recorded: Recorded) -> Any:
    """Counts the clips that are done and skipped, from what was there before on, and tells `progress`."""
    new = {planned.id for planned in left}
    before = [recorded.rows[planned.id] for planned in plan if planned.id not in new]
    done, skipped = len(plan) - len(left), sum(row["reason"] is not None for row in before)

    def tell(was_skipped: bool) -> None:
        nonlocal done, skipped
        done, skipped = done + 1, skipped + was_skipped
        if progress is not None:
            progress(done, len(plan), skipped)

    return tell


def _kind(reason: str | None) -> str | None:
    """The kind of fault: a reason without its details."""
    return None if reason is None else reason.partition(":")[0]


def _report(
    store_folder: Path, plan: Sequence[Planned], recorded: Recorded, encoded: int, seconds: float
) -> EncodeReport:
    rows = [recorded.rows[planned.id] for planned in plan]
    kept = [(planned, row) for planned, row in zip(plan, rows, strict=True) if row["reason"] is None]
    ids = {planned.id for planned in plan}
    measured = [row["psnr"] for _, row in kept if row["psnr"] is not None]
    reasons = Counter(kind for row in rows if (kind := _kind(row["reason"])) is not None)
    return EncodeReport(
        store=store_folder,
        planned=len(plan),
        kept=len(kept),
        skipped=len(plan) - len(kept),
        reasons=dict(reasons.most_common()),
        encoded=encoded,
        same_content=len(plan) - len(ids),
        without_caption=sum(planned.clip.caption is None for planned, _ in kept),
        unused=sum(row["reason"] is None and id not in ids for id, row in recorded.rows.items()),
        psnr=float(np.mean(measured)) if measured else None,
        seconds=seconds,
    )


def _check_any_kept(plan: Sequence[Planned], recorded: Recorded, source_folder: Path) -> None:
    reasons = Counter(_kind(recorded.rows[planned.id]["reason"]) for planned in plan)
    if None not in reasons:
        kind, count = reasons.most_common(1)[0]
        raise Refused(
            "no usable clip", where=source_folder, got=f"{len(plan)} skipped, most of them ({count}) {kind}",
            expected="at least one that can be encoded",
        )  # fmt: skip
