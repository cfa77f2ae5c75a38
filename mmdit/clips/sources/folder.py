"""Clips that lie in a folder as files."""

import os
from collections.abc import Iterator
from pathlib import Path

from mmdit.clips.sources.checks import Notes, Paths, read_text
from mmdit.clips.sources.clip import SourceClip
from mmdit.clips.sources.row import Rows
from mmdit.errors import Refused


def folder_clips(paths: Paths, rows: Rows) -> Iterator[SourceClip]:
    """Every video and image below the folder is a clip; the text of NAME.txt beside NAME.mp4 is its caption.

    Hidden files and folders (`.name`) and sheets of generated clips are left out, links to folders not followed. With
    labels by folder, the first folder on the way is the label, and a file that lies beside the class folders is
    refused.
    """
    suffixes, by_folder = rows.rules.suffixes(), rows.rules.labels == "folder"
    for relative, siblings in walk(paths, rows.notes):
        stem, suffix = os.path.splitext(relative)
        if suffix.lower() not in suffixes:
            if suffix.lower() != ".txt":
                rows.notes.add("files of other kinds", relative)
            continue
        if os.path.basename(relative) == "sheet.png" and "manifest.json" in siblings:  # of what `mmdit generate` made
            rows.notes.add("sheets of generated clips", relative)
            continue
        where = str(paths.folder / relative)
        path = paths.below(relative, where)
        values: dict[str, object] = {}
        if os.path.basename(stem) + ".txt" in siblings:
            where = str(paths.folder / paths.below(stem + ".txt", where))
            values["caption"] = read_text(Path(where))
        if by_folder:
            values["label"], _, rest = relative.partition("/")
            if not rest:
                raise Refused(
                    "a file without a class folder", where=where, expected=f"{paths.folder}/CLASS/{relative}",
                    fix="move it into one, or away",
                )  # fmt: skip
        clip = rows.clip(path, values, where)
        if clip is not None:
            yield clip


def walk(paths: Paths, notes: Notes) -> Iterator[tuple[str, set[str]]]:
    """The files below a folder, relative to it, each with the names that lie beside it; hidden ones are left out."""
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(paths.folder / folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
        names = {entry.name for entry in entries}
        below = []
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                below.append(relative)
            elif entry.is_dir():
                paths.below(f"{relative}/link", str(paths.folder / relative))
                notes.add("links to folders, not followed", relative)
            else:
                yield relative, names
        folders += reversed(below)
