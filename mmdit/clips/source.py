"""Finding clips: which videos and images a source holds, and what is known about each.

A source is a folder of files, one of class folders, a table that lists files, a folder of tar files (WebDataset), or a
data set that the library `datasets` saved.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from mmdit.clips.part import Part
from mmdit.clips.sources.checks import Notes, Paths, shown
from mmdit.clips.sources.clip import (
    DEFAULT_SPLIT,
    IMAGE_SUFFIXES,
    OWN_COLUMNS,
    VIDEO_SUFFIXES,
    Found,
    Kind,
    SourceClip,
    SourceRules,
    check_choice,
)
from mmdit.clips.sources.folder import folder_clips
from mmdit.clips.sources.hf_dataset import dataset_clips, dataset_labels, is_dataset
from mmdit.clips.sources.labels import CLASSES, Labels, read_classes
from mmdit.clips.sources.row import Rows
from mmdit.clips.sources.table import SUFFIXES, table_clips
from mmdit.clips.sources.tar import is_tar
from mmdit.clips.sources.webdataset import webdataset_clips
from mmdit.errors import Refused

__all__ = [
    "DEFAULT_SPLIT", "IMAGE_SUFFIXES", "OWN_COLUMNS", "VIDEO_SUFFIXES", "Found", "Kind", "Part", "SourceClip",
    "SourceRules", "find_clips", "find_source",
]  # fmt: skip
CAPTIONS = "captions"


def find_clips(root: str | os.PathLike[str], captions: str | os.PathLike[str] | None = None) -> list[SourceClip]:
    """The videos of `find_source`, without the rest; `captions` is its `table`."""
    return find_source(root, table=captions, rules=SourceRules(media="video")).clips


def find_source(
    root: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    table: str | os.PathLike[str] | None = None,
    rules: SourceRules | None = None,
) -> Found:
    """The clips of a source, sorted by path and start, with the labels and counts that belong to them.

    `root` is a folder, a table or a tar file. `kind` says what it is; None: found out by looking at it. A folder is
    what `table` lists where that is given (paths are relative to `root`), else what captions.csv, captions.jsonl or
    captions.parquet in it lists, else a saved data set, else tar files where some lie in it, else its files. How each
    is read: `mmdit.clips.sources`. A listed file that does not exist is kept, and noted: reading it fails then.

    Raises:
        Refused: there is nothing, or not one clip; a row, file or member is bad (it is named); a path does not lead to
            a regular file below the folder; the same span of the same video is there twice.
    """
    root, rules, notes = Path(root), rules or SourceRules(), Notes()
    if kind is not None:
        check_choice("kind", kind, get_args(Kind))
    try:
        kind, folder, names = _opened(root, kind, table)
        if rules.labels == "folder" and kind != "folder":
            raise Refused("labels by folder, but not a folder of files", where=root, got=f"a source of kind {kind}")
        paths = Paths(folder, notes)
        labels = _labels(paths, kind, names, rules)
        rows = Rows(rules, labels, notes)
        clips = list(_clips(kind, names, paths, rows))
    except OSError as error:
        raise Refused("cannot be read", where=error.filename or root, got=error.strerror or error) from None
    if not clips:
        counted = "; ".join(f"{count} {what}" for what, count in notes.counts.items())
        raise Refused(
            "no videos or images", where=names[0] if kind == "table" else root,
            got=f"0 clips{f' ({counted})' if counted else ''}", expected="at least one",
            fix="known endings are " + " ".join(sorted(rules.suffixes())) if kind != "table" else None,
        )  # fmt: skip
    clips.sort(key=lambda clip: (clip.path, clip.start or 0.0, clip.end or math.inf))
    label_names = labels.names()
    if label_names:
        for clip in clips:
            if clip.label is None:
                notes.add("without a label", clip.path)
    return Found(clips, label_names, kind, folder, notes.counts, notes.first)


def _opened(root: Path, kind: Kind | None, table: str | os.PathLike[str] | None) -> tuple[Kind, Path, list[Path]]:
    """The kind of a source, the folder that its paths are relative to, and its table or tar files."""
    if table is not None:
        if kind not in (None, "table"):
            raise Refused("a table, and a source that is none", where=table, got=f"kind {kind}", expected="kind table")
        if not root.is_dir():
            raise Refused("no such folder of videos", where=root, fix="name the folder that the table's paths begin in")
        return "table", root, [_table(Path(table))]
    if root.is_dir():
        return _opened_folder(root, kind)
    if not root.exists():
        raise Refused("no such folder of videos", where=root, fix="name a folder, a table or a tar file")
    is_one: Kind = "webdataset" if is_tar(root.name) else "table"
    if kind not in (None, is_one):
        raise Refused("a file where a folder is expected", where=root, got=f"kind {kind}", expected=f"kind {is_one}")
    return is_one, root.parent, [root if is_one == "webdataset" else _table(root)]


def _table(path: Path) -> Path:
    if not path.is_file():
        raise Refused("no such captions file", where=path, fix="name a table with a column 'path'")
    if path.suffix.lower() not in SUFFIXES:
        raise Refused("not a table", where=path, got=shown(path.suffix), expected=" ".join(SUFFIXES))
    return path


def _opened_folder(root: Path, kind: Kind | None) -> tuple[Kind, Path, list[Path]]:
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    tables = [root / f"{CAPTIONS}{suffix}" for suffix in SUFFIXES if f"{CAPTIONS}{suffix}" in names]
    tars = [root / name for name in names if is_tar(name)]
    if kind is None:
        if tables:
            kind = "table"
        elif is_dataset(root):
            kind = "datasets"
        else:
            kind = "webdataset" if tars else "folder"
            media = [name for name in names if os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
            if tars and media:
                raise Refused(
                    "tar files and videos in one folder", where=root, got=f"{tars[0].name} and {media[0]}",
                    expected="one kind of source", fix="say which kind is meant: webdataset or folder",
                )  # fmt: skip
    if kind == "table" and len(tables) != 1:
        raise Refused(
            "no table" if not tables else "more than one table", where=root,
            got=", ".join(table.name for table in tables) or None,
            expected="one of " + ", ".join(f"{CAPTIONS}{suffix}" for suffix in SUFFIXES), fix="name the table",
        )  # fmt: skip
    if kind == "webdataset" and not tars:
        raise Refused("no tar files", where=root, expected="*.tar in the folder itself")
    return kind, root, tables if kind == "table" else tars if kind == "webdataset" else []


def _clips(kind: Kind, names: list[Path], paths: Paths, rows: Rows) -> Iterator[SourceClip]:
    if kind == "table":
        return table_clips(names[0], paths, rows)
    if kind == "webdataset":
        return webdataset_clips(names, paths, rows)
    if kind == "datasets":
        return dataset_clips(paths, rows)
    return folder_clips(paths, rows)


def _labels(paths: Paths, kind: Kind, names: list[Path], rules: SourceRules) -> Labels:
    """The label names that the user gives, those of a data set, or of classes.txt beside the table, or none yet."""
    by_folder = rules.labels == "folder"
    if rules.label_names is not None:
        return Labels(rules.label_names, "the label names given", only_names=by_folder)
    if kind == "datasets" and (classes := dataset_labels(paths)) is not None:
        return Labels(classes, paths.folder, only_names=True)
    beside = names[0].parent if kind == "table" else paths.folder
    given = None if kind == "folder" and not by_folder else read_classes(beside / CLASSES)
    return Labels(given, beside / CLASSES, only_names=by_folder)
