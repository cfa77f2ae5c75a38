"""Lists of prompts: a text file with one a line, a CSV table or JSON lines, checked whole before any work."""

import csv
import difflib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from mmdit.clips.sources.checks import check_text, read_text, shown
from mmdit.clips.sources.table import read_object
from mmdit.conditioning import Labels
from mmdit.errors import Refused
from mmdit.pipelines.output import FORMATS, KNOWN
from mmdit.pipelines.request import check_negatives, check_sampling, pair_conditions

COLUMNS = ("prompt", "label", "seed", "out", "negative", "frames", "size", "guidance")
SUFFIXES = (".txt", ".csv", ".jsonl")


@dataclass(frozen=True)
class Entry:
    """A row of a list; None where it says nothing. `where` names the file and the row."""

    where: str
    prompt: str | None = None
    label: str | None = None
    negative: str | None = None
    seed: int | None = None
    out: str | None = None
    frames: int | None = None
    size: tuple[int, int] | None = None
    guidance: float | None = None


def read_prompt_list(path: Path, *, labels: Labels | None, has_text: bool, negative: str | None = None) -> list[Entry]:
    """The entries of a .txt (a prompt a line), .csv or .jsonl file (`COLUMNS`, all optional). Empty lines are left out.

    `negative` is that of the rows which have none.

    Raises:
        Refused: naming the row, for one that the model cannot make, an unknown column, or a file name that leads out of
            the folder or stands twice; for a file that cannot be read or has no entries.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise Refused("not a list of prompts", where=path, got=path.suffix or "no suffix", expected=" ".join(SUFFIXES))
    try:
        text = read_text(path)
    except OSError as error:
        raise Refused("the list of prompts cannot be read", where=path, got=error.strerror) from None
    rows = {".txt": _lines, ".csv": _csv, ".jsonl": _jsonl}[path.suffix.lower()](text, path)
    entries, outs = [], dict[str, str]()
    for number, values in rows:
        where = f"{path}, line {number}"
        entry = _entry(values, where, labels, has_text)
        if entry.out is not None and outs.setdefault(entry.out, where) != where:
            raise Refused("the same file twice", where=f"{outs[entry.out]} and {number}", got=entry.out)
        entries.append(entry if entry.negative is not None else replace(entry, negative=negative))
    if not entries:
        raise Refused("the list of prompts is empty", where=path, expected="at least one")
    return entries


def read_size(text: str, where: str) -> tuple[int, int]:
    """(height, width) of "HEIGHTxWIDTH"; Refused for another text."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower(), re.ASCII)
    if match is None or len(text) > 20:
        raise Refused("not a size", where=where, got=repr(text[:40]), expected="HEIGHTxWIDTH, for example 64x48")
    return int(match[1]), int(match[2])


def _lines(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1):  # a prompt may hold other ends of lines
        if line.strip():
            yield number, {"prompt": line.strip()}


def _csv(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in rows:
            if not header:
                header = [cell.strip() for cell in cells]
                if len(set(header)) < len(header):
                    raise Refused("a column twice", where=path, got=", ".join(map(repr, header)))
            elif cells:
                if len(cells) != len(header):
                    raise Refused(
                        "a row of another length than the header", where=f"{path}, line {rows.line_num}",
                        got=f"{len(cells)} cells", expected=len(header), fix='put "..." around texts with commas',
                    )  # fmt: skip
                yield rows.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise Refused(f"not a CSV file ({error})", where=f"{path}, line {rows.line_num}") from None


def _jsonl(text: str, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, read_object(line, f"{path}, line {number}")


def _entry(values: dict[str, Any], where: str, labels: Labels | None, has_text: bool) -> Entry:
    for name in values:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, n=1)
            raise Refused("unknown column", where=where, got=shown(name), expected=", ".join(COLUMNS),
                          fix=f"did you mean {near[0]}?" if near else None)  # fmt: skip
    said = {name: value for name, value in values.items() if value is not None and value != ""}
    prompt, negative, label = (said.get(name) for name in ("prompt", "negative", "label"))
    for text in (prompt, negative):
        if not isinstance(text, str | None):
            raise Refused("a prompt is not text", where=where, got=shown(text), expected="text")
        check_text(text or "", where)
    seed, frames, guidance = (
        _number(said, name, kind, where) for name, kind in (("seed", int), ("frames", int), ("guidance", float))
    )
    try:
        (condition,) = pair_conditions(prompt, None if label is None else [label], labels=labels, has_text=has_text)
        check_negatives(negative, 1, has_text=has_text)
        check_sampling(steps=1, guidance=1.0 if guidance is None else guidance, seed=seed or 0, first_index=0,
                       clips_each=1, batch_size=1, precision="float32")  # fmt: skip
    except Refused as error:
        raise Refused(f"{where}: {error}") from None
    known = None if condition.label is None or labels is None else labels.names[condition.label]
    size = read_size(str(said["size"]), where) if "size" in said else None
    return Entry(where, prompt, known, negative, seed, _file_name(said.get("out"), where), frames, size, guidance)


def _number(said: dict[str, Any], name: str, kind: Any, where: str) -> Any:
    value = said.get(name)
    try:
        if value is None:
            return None
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        return kind(value)
    except (ValueError, TypeError):
        expected = "a whole number" if kind is int else "a number"
        raise Refused(f"the {name} is no number", where=where, got=shown(value), expected=expected) from None


def _file_name(out: object, where: str) -> str | None:
    """A path below the output folder."""
    if out is None:
        return None
    path = PurePosixPath(check_text(out, where) if isinstance(out, str) else "/")
    if path.is_absolute() or ".." in path.parts or not path.name or any(part.startswith(".") for part in path.parts):
        raise Refused("bad file name", where=where, got=shown(out), expected="a name below the output folder")
    if path.suffix and path.suffix[1:].lower() not in FORMATS:
        raise Refused("this format is not written", where=where, got=shown(out), expected=KNOWN)
    return str(path)
