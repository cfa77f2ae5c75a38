"""The folder that `mmdit generate` fills: what is to be in it, and what is there already."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdit import files
from mmdit.errors import Refused
from mmdit.pipelines.output import read_note
from mmdit.pipelines.wishes import is_made

MANIFEST = "manifest.json"
PLACES = ("source", "given_from")  # on this machine: the checkpoint's folder, and the files of given frames by option
Row = dict[str, Any]  # "file", places, and the note of how it is made


def write_manifest(folder: Path, rows: Sequence[Row]) -> int:
    """Writes manifest.json: the rows as planned, and of the files that are made all that their notes say.

    Returns the number of files that are made.
    """
    listed, made = [], 0
    for row in rows:
        if is_made(folder / row["file"], note_of(row)):
            row = row | read_note(folder / row["file"])
            made += 1
        listed.append(row)
    files.write_json(folder / MANIFEST, listed)
    return made


def check_folder(folder: Path, rows: Sequence[Row]) -> None:
    """Refused where `folder` has the files of another call: nothing that was made is overwritten."""
    path = folder / MANIFEST
    if not path.is_file():
        return
    there = {row["file"]: row for row in read_manifest(path)}
    wanted = {row["file"]: row for row in rows}
    for name in sorted({*there, *wanted}):
        if (name in there) != (name in wanted):
            where = "there and not asked for" if name in there else "asked for and not in its list"
            raise _another(folder, f"{name}, {where}", "the same prompts, labels and count as before")
        for key, value in note_of(wanted[name]).items():
            if there[name].get(key) != value:
                raise _another(folder, f"{key}={value} for {name}", f"{key}={there[name].get(key)}")


def read_manifest(path: Path) -> list[Row]:
    """The rows of a manifest; Refused for another file."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise Refused("not a manifest", where=path, got=error) from None
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and isinstance(row.get("file"), str) for row in rows
    ):
        raise Refused("not a manifest", where=path, expected="a list of files that mmdit generate wrote")
    return rows


def note_of(row: Row) -> dict[str, Any]:
    """A row without what belongs to the manifest alone."""
    return {key: value for key, value in row.items() if key not in ("file", *PLACES)}


def _another(folder: Path, got: str, expected: str) -> Refused:
    return Refused("the folder holds the clips of another call", where=folder, got=got, expected=expected,
                   fix="name a new folder with --out")  # fmt: skip
