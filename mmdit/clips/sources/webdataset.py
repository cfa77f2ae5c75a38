"""Clips in tar files (WebDataset): the index of each tar is read, nothing is unpacked."""

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mmdit.clips.part import Part
from mmdit.clips.sources.checks import MAX_TEXT, Paths, decoded, shown
from mmdit.clips.sources.clip import IMAGE_SUFFIXES, VIDEO_SUFFIXES, SourceClip
from mmdit.clips.sources.row import Rows
from mmdit.clips.sources.table import read_object
from mmdit.clips.sources.tar import REMEDY, members
from mmdit.errors import Refused

TEXTS = ("txt", "json", "cls")


@dataclass
class _Sample:
    """The members of one key: name, offset and size of the video or image, and of each text."""

    name: str
    at: int
    media: tuple[str, int, int] | None = None
    texts: dict[str, tuple[int, int]] = field(default_factory=dict)


def webdataset_clips(tars: list[Path], paths: Paths, rows: Rows) -> Iterator[SourceClip]:
    """The videos and images in tar files, grouped by key: the name of a member up to the first dot of its base name.

    KEY.mp4 (or another known ending) is the clip, KEY.txt its caption, KEY.cls its label, and KEY.json a dictionary of
    caption, label, start, end, split and attributes; a text of its own goes before what the dictionary says. A clip's
    path is TAR/MEMBER. Texts without a video are counted in the notes, and members of other kinds.

    Raises:
        Refused: a compressed, cut or damaged tar, one with data after its end, a member that is no file or whose name
            leads elsewhere, two members of one name, two videos of one key, or a bad text; file, member and position
            are named.
    """
    for tar in tars:
        relative = paths.below(tar.name, str(tar))
        with open(tar, "rb") as file:
            for sample in _samples(tar, file, rows).values():
                where = f"{tar}, {sample.name} at byte {sample.at}"
                if sample.media is None:
                    rows.notes.add("texts without a video or image", where)
                    continue
                name, offset, size = sample.media
                values = _values(file, sample, where, rows)
                clip = rows.clip(f"{relative}/{name}", values, where, Part(relative, offset, size))
                if clip is not None:
                    yield clip


def _samples(tar: Path, file: BinaryIO, rows: Rows) -> dict[str, _Sample]:
    suffixes, samples, names = rows.rules.suffixes(), dict[str, _Sample](), set[str]()
    for member in members(tar, file):
        where = f"{tar}, {shown(member.name)} at byte {member.offset}"
        name = _checked_name(member, where)
        if name is None:
            continue
        if name in names:
            raise Refused("two members of one name", where=where, fix=REMEDY)
        names.add(name)
        folder, base = os.path.split(name)
        key, _, ending = base.partition(".")
        sample = samples.setdefault(f"{folder}/{key}", _Sample(name, member.offset))
        suffix = os.path.splitext(base)[1].lower()
        if suffix in suffixes:
            if sample.media is not None:
                raise Refused(
                    "two videos or images of one key", where=where, got=f"{sample.media[0]} and {name}",
                    expected="one", fix="take the videos only, or the images only, or give each a key of its own",
                )  # fmt: skip
            sample.media = (name, member.offset_data, member.size)
        elif ending.lower() in TEXTS:
            sample.texts[ending.lower()] = (member.offset_data, member.size)
        else:
            other = suffix in VIDEO_SUFFIXES | IMAGE_SUFFIXES
            rows.notes.add("members not asked for" if other else "members of other kinds", where)
    return {key: sample for key, sample in samples.items() if sample.media is not None or sample.texts}


def _checked_name(member: tarfile.TarInfo, where: str) -> str | None:
    """The name of a member without `./`; None for folders and hidden members."""
    parts = [part for part in member.name.split("/") if part not in ("", ".")]
    if member.name.startswith("/") or ".." in parts or "\0" in member.name:
        raise Refused("a member that leads out of the tar", where=where, fix="make the tar with names below a folder")
    if member.isdir():
        return None
    if not member.isreg() or member.issparse():
        raise Refused("a member that is no plain file", where=where, got=_type(member), fix="make the tar without it")
    if not parts or parts[-1].startswith("."):
        return None
    try:
        member.name.encode()
    except UnicodeEncodeError:
        raise Refused("a name that is not UTF-8", where=where, fix="rename the member") from None
    return "/".join(parts)


def _type(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a file with holes"
    return "a link" if member.issym() or member.islnk() else "a device or pipe"


def _values(file: BinaryIO, sample: _Sample, where: str, rows: Rows) -> dict[str, Any]:
    texts = {}
    for ending, (offset, size) in sample.texts.items():
        if size > MAX_TEXT:
            raise Refused("a text that is too long", where=where, got=f".{ending} of {size} bytes")
        file.seek(offset)
        texts[ending] = decoded(file.read(size))
    values = read_object(texts["json"], f"{where} (.json)") if "json" in texts else {}
    for ending, column in (("txt", "caption"), ("cls", "label")):
        if ending in texts:
            said, text = values.get(column), texts[ending].strip()
            if said is not None and str(said).strip() != text:
                rows.notes.add(f".{ending} and .json tell another {column}; .{ending} is taken", where)
            values[column] = text
    return values
