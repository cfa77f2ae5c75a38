"""The options of encoding as a user says them, made into rules: those of `mmdit encode`, and of a recipe's videos."""

import re
from pathlib import Path

from mmdit.clips.buckets import Bucket
from mmdit.clips.decode import ReaderName
from mmdit.clips.source import Found, SourceRules, find_source
from mmdit.clips.sources.labels import read_classes
from mmdit.clips.windows import Windows
from mmdit.errors import Refused
from mmdit.latents.request import ClipRules, TokenBudget


def rules_of(
    *,
    frames: int,
    size: str,
    bucket: list[str] | None,
    token_budget: int | None,
    fps: float,
    stride: int | None,
    windows: str,
    window_step: float | None,
    flip: bool,
    reader: ReaderName,
) -> ClipRules:
    """The options as rules; Refused where they do not make sense."""
    if bucket and token_budget is not None:
        raise Refused("both buckets and a token budget", got="bucket and token_budget", expected="one of them")
    buckets = tuple(map(Bucket.parse, bucket)) if bucket else (Bucket(frames, *size_of(size)),)
    budget = TokenBudget((frames,), token_budget) if token_budget is not None else None
    return ClipRules(
        buckets=() if budget else buckets, budget=budget, fps=fps, stride=stride,
        windows=_windows(windows, window_step), flip=flip, reader=reader,
    )  # fmt: skip


def _windows(text: str, step: float | None) -> Windows:
    if not re.fullmatch(r"all|[1-9]\d{0,5}", text):
        raise Refused("not a number of windows", got=repr(text), expected="1, 2, 3, ... or all")
    return Windows(None if text == "all" else int(text), step)


def size_of(text: str) -> tuple[int, int]:
    """HEIGHTxWIDTH."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip())
    if match is None:
        raise Refused("not a size", got=repr(text), expected="HEIGHTxWIDTH, for example 64x48")
    return int(match[1]), int(match[2])


def source_of(
    source: Path,
    rules: ClipRules,
    *,
    kind: str | None,
    captions: Path | None,
    caption_from: str,
    labels: str,
    label_names: Path | None,
    no_caption: str,
    bad_captions: str,
    max_caption: int | None,
) -> Found:
    """The clips of the source; images are taken where a bucket has one frame."""
    lengths = rules.budget.frames if rules.budget is not None else [bucket.frames for bucket in rules.buckets]
    media = {True: "all", False: "video"}[1 in lengths]
    names = None
    if label_names is not None and (names := read_classes(label_names)) is None:
        raise Refused("no such file of label names", where=label_names)
    how = SourceRules(media, caption_from, labels, names and tuple(names), bad_captions, no_caption, max_caption)  # type: ignore[arg-type]
    return find_source(source, kind=kind, table=captions, rules=how)  # type: ignore[arg-type]
