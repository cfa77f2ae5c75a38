"""What an encoding run is to do: the clips with their ids, what is dropped and why, whether it can be done."""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmdit.clips.buckets import Bucket, choose_bucket
from mmdit.clips.container import SLACK
from mmdit.clips.decode import CROP_RULE, ReadRequest
from mmdit.clips.part import Part
from mmdit.clips.probe import Probed
from mmdit.clips.reader import ClipReader, default_workers
from mmdit.clips.source import Found, SourceClip
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.latents.facts import FACTS, Facts, find_facts, read_facts, sizes_of, where_of, write_facts
from mmdit.latents.layout import INDEX, META, QUARANTINE, SHARD_TABLE, SHARDS
from mmdit.latents.request import ClipRules, EncodeOptions


@dataclass(frozen=True)
class Planned:
    """A clip to be in the store, and the id of its latent: equal ids are equal latents.

    `reason` says why it is dropped before it is read; None: it is not.
    """

    id: str
    clip: SourceClip
    frames: int
    size: tuple[int, int]
    fps: float
    flip: bool = False
    stride: int | None = None
    reason: str | None = None

    @property
    def bucket(self) -> Bucket:
        return Bucket(self.frames, *self.size)

    def as_json(self) -> str:
        """One line that `from_json` understands."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Planned":
        values = json.loads(line)
        clip = values.pop("clip")
        part = Part(**clip.pop("part")) if clip["part"] is not None else None
        return cls(**values | {"size": tuple(values["size"]), "clip": SourceClip(**clip | {"part": part})})


@dataclass(frozen=True)
class SourcePlan:
    """What a source gives under some rules."""

    found: Found
    rules: ClipRules
    """With buckets, where they were to be derived."""
    facts: dict[str, Facts]
    clips: list[Planned]
    """The dropped ones too."""


def plan_source(
    found: Found,
    codec: Codec,
    rules: ClipRules,
    options: EncodeOptions,
    folder: Path | None,
    *,
    probed: bool | None = None,
) -> SourcePlan:
    """The clips that `rules` cut from a source, with their ids; no frame but a video's first is decoded.

    Args:
        folder: what is found out about the sources is kept there, for the next time; None: nowhere.
        probed: as for `plan_clips`.
    """
    known = {} if folder is None else read_facts(folder)
    if options.retry_skipped:  # what could not be looked at is looked at again
        known = {path: replace(facts, reason=None) for path, facts in known.items()}
    needed = rules.needs_probe if probed is None else probed
    with ClipReader(workers_of(options) + 1, deadline=options.deadline) as reader:
        facts = find_facts(found.folder, found.clips, known, reader if needed else None)
    if folder is not None and facts != known:
        write_facts(folder, facts)
    rules = rules.settled(codec, sizes_of(facts))
    clips = plan_clips(found.clips, facts, rules, settings_of(codec, options), probed=probed)
    return SourcePlan(found, rules, facts, clips)


def settings_of(codec: Codec, options: EncodeOptions) -> dict[str, Any]:
    """What all clips of a store share."""
    how = {"codec": codec.fingerprint, "precision": codec.precision, "tiling": codec.tiling}
    return how | {"dtype": options.dtype}


def workers_of(options: EncodeOptions) -> int:
    """Decoding processes of this process."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of this run on this machine
    return options.workers or max(1, default_workers() // here)


def plan_clips(
    clips: Iterable[SourceClip],
    facts: dict[str, Facts],
    rules: ClipRules,
    settings: dict[str, Any],
    *,
    probed: bool | None = None,
) -> list[Planned]:
    """Each clip that the sources give, in their order, with its id: a hash of its source's bytes, its span, and all
    else that its latent depends on.

    Args:
        settings: those that all clips of a store share.
        probed: whether the sources' headers decide; None: where the rules need it. Otherwise reading decides.
    """
    plan = []
    probed = rules.needs_probe if probed is None else probed
    for clip in clips:
        for cut, bucket, reason in _cuts(clip, facts[clip.path], rules, probed):
            for flip in (False, True) if rules.flip and reason is None else (False,):
                about = [facts[clip.path].sha256, cut.start, cut.end, bucket, rules.fps, rules.stride, flip]
                identity = json.dumps([*about, CROP_RULE, rules.reader, settings], sort_keys=True)
                id = hashlib.sha256(identity.encode()).hexdigest()[:32]
                size = (bucket.height, bucket.width)
                plan.append(Planned(id, cut, bucket.frames, size, rules.fps, flip, rules.stride, reason))
    return plan


Cut = tuple[SourceClip, Bucket, str | None]
"""A span of a source, the bucket it goes into, and why it is dropped, if it is."""


def _cuts(clip: SourceClip, facts: Facts, rules: ClipRules, probed: bool) -> Iterator[Cut]:
    """The spans of a source that become clips, each with its bucket, or with the reason why it is dropped."""
    first = rules.buckets[0]
    if not probed:
        yield clip, first, None
        return
    if facts.probed is None:
        yield clip, first, facts.reason or f"cannot be read: {facts.sha256.partition(': ')[2]}"
        return
    span = _Span.of(clip, facts.probed, rules)
    bucket = choose_bucket(rules.buckets, span.frames, facts.probed.size)
    if bucket is None:
        least = min(bucket.frames for bucket in rules.buckets)
        yield clip, first, f"too short: {span.frames} frames at the wanted rate, the shortest bucket has {least}"
        return
    begin = clip.start or 0.0
    for start in rules.windows.starts((span.frames - bucket.frames) / span.rate, bucket.frames / span.rate):
        yield (clip if start == 0.0 else replace(clip, start=round(begin + start, 6))), bucket, None


@dataclass(frozen=True)
class _Span:
    """What a span of a source gives: so many `frames`, `rate` of them in a second."""

    frames: int
    rate: float

    @classmethod
    def of(cls, clip: SourceClip, probed: Probed, rules: ClipRules) -> "_Span":
        if probed.kind == "image":
            return cls(1, rules.fps)
        rate = rules.fps if rules.stride is None else (probed.fps or rules.fps) / rules.stride
        start = clip.start or 0.0
        frames = math.ceil((probed.duration - start - SLACK[0]) * rate)  # those that begin before the video ends
        if clip.end is not None:
            frames = min(frames, math.floor((clip.end - start + SLACK[0]) * rate) + 1)  # the last may begin at the end
        return cls(max(frames, 0), rate)


def speed_of(planned: Planned, probed: Probed | None) -> float:
    """How many seconds of the source a second of the clip shows; 1: true speed."""
    if planned.stride is None or probed is None or not probed.fps:
        return 1.0
    return planned.stride * planned.fps / probed.fps


def row_of(planned: Planned, rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What is recorded of a planned clip; of one that was dropped before it was read, why."""
    if planned.reason is not None:
        return {"id": planned.id, "source": planned.clip.path, "reason": planned.reason}
    return rows[planned.id]


def left_to_do(plan: Sequence[Planned], rows: dict[str, dict[str, Any]], retry_skipped: bool) -> list[Planned]:
    """What is still to be encoded, each latent once, those of one shape together; `rows` are the recorded clips."""
    left: dict[str, Planned] = {}
    for planned in plan:
        row = rows.get(planned.id)
        if planned.reason is None and (row is None or (retry_skipped and row["reason"] is not None)):
            left.setdefault(planned.id, planned)
    return sorted(left.values(), key=lambda planned: planned.bucket)


def read_request_of(root: Path, planned: Planned, rules: ClipRules) -> ReadRequest:
    """What the decoding processes are asked for."""
    file, offset, length = where_of(root, planned.clip.path, planned.clip.part)
    return ReadRequest(
        path=str(file.absolute()), frames=planned.frames, size=planned.size, fps=planned.fps, start=planned.clip.start,
        end=planned.clip.end, reader=rules.reader, offset=offset, length=length, flip=planned.flip,
        stride=planned.stride,
    )  # fmt: skip


def check_folder(folder: Path) -> None:
    """A store goes into a new folder, an empty one, or a store."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    except OSError as error:
        raise Refused("no store can be made there", where=folder, got=error.strerror) from None
    if names and not names & {FACTS, SHARDS, META, INDEX, SHARD_TABLE, QUARANTINE}:
        raise Refused(
            "the folder has other things in it", where=folder, got=", ".join(sorted(names)[:3]),
            expected="a latent store, or an empty or new folder",
        )  # fmt: skip
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refused("no store can be made there", where=folder, got="no permission to write")


def check_space(folder: Path, needed: int) -> None:
    if needed > (free := shutil.disk_usage(folder).free):
        raise Refused(
            "too little room for the latents", where=folder, got=f"{free / 1e9:.2f} GB free",
            expected=f"{needed / 1e9:.2f} GB", fix="make room, or name another --out",
        )  # fmt: skip
