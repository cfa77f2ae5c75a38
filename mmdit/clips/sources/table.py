"""Clips that a table lists: CSV, JSON lines or Parquet."""

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mmdit.clips.sources.arrow import values_of
from mmdit.clips.sources.checks import Paths, check_text, shown
from mmdit.clips.sources.clip import SourceClip
from mmdit.clips.sources.row import Rows
from mmdit.errors import Refused

SUFFIXES = (".csv", ".jsonl", ".parquet")
_BATCH = 4096  # rows of a Parquet table in memory at a time

Values = dict[str, Any]


def table_clips(table: Path, paths: Paths, rows: Rows) -> Iterator[SourceClip]:
    """The clips of a table with the columns path, caption, label, split, start, end; all but path may be missing.

    Any other column is an attribute. Lines and rows count from 1, a CSV file's header included. In CSV an empty cell is
    unknown, in the others null. A listed file that is not there is kept, and counted in the notes.

    Raises:
        Refused: another kind of file, a damaged one, a bad row, or the same span of the same video twice.
    """
    read, unit = {".csv": (_csv, "line"), ".jsonl": (_jsonl, "line"), ".parquet": (_parquet, "row")}[
        table.suffix.lower()
    ]
    seen: dict[object, int] = {}
    for number, values in read(table):
        where = f"{table}, {unit} {number}"
        path = values.get("path")
        if not isinstance(path, str):
            raise Refused("bad path", where=where, got=shown(path), expected="the name of a file, as text")
        path = paths.below(path, where)
        clip = rows.clip(path, values, where)
        if clip is None:
            continue
        start = clip.start or None  # from 0 s on is from the beginning on
        key = path if start is None and clip.end is None else (path, start, clip.end)
        if key in seen:
            raise Refused(
                "the same span of the same video twice", where=f"{table}, {unit}s {seen[key]} and {number}", got=path,
                expected=f"one {unit} for each", fix="remove one of them",
            )  # fmt: skip
        seen[key] = number
        yield clip


def _check_header(names: list[str], table: Path) -> list[str]:
    if "path" not in names:
        shown_names = ", ".join(map(shown, names[:12]))
        raise Refused("no column 'path'", where=table, got=shown_names, expected="path, caption, label, ...")
    if "" in names or len(set(names)) < len(names):
        raise Refused("columns without a name of their own", where=table, got=", ".join(map(repr, names)))
    return [check_text(name, f"{table}, line 1") for name in names]


def _csv(table: Path) -> Iterator[tuple[int, Values]]:
    csv.field_size_limit(max(csv.field_size_limit(), table.stat().st_size + 1))
    # What is not UTF-8 becomes lone surrogates, so that the row that has it can be named.
    with open(table, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv.reader(file, strict=True)
        header: list[str] = []
        try:
            for cells in rows:
                if not header:
                    header = _check_header([cell.strip() for cell in cells], table)
                elif cells:
                    yield rows.line_num, _cells(header, cells, f"{table}, line {rows.line_num}")
        except csv.Error as error:
            raise Refused(f"not a CSV file ({error})", where=f"{table}, line {rows.line_num}") from None


def _cells(header: list[str], cells: list[str], where: str) -> Values:
    if len(cells) != len(header):
        raise Refused(
            "a row of another length than the header", where=where, got=f"{len(cells)} cells",
            expected=f"{len(header)}", fix='put "..." around texts with commas',
        )  # fmt: skip
    values: Values = dict(zip(header, cells, strict=True))
    for name in ("start", "end"):
        if (text := values.get(name)) is not None:
            with contextlib.suppress(ValueError):  # text stays text, and is refused where a number is expected
                values[name] = float(text) if text.strip() else None
    return values


def _jsonl(table: Path) -> Iterator[tuple[int, Values]]:
    with open(table, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, read_object(line, f"{table}, line {number}")


def read_object(text: str, where: str) -> Values:
    """A JSON object, no key of it twice. Raises Refused for anything else."""
    try:
        values = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise Refused("not JSON", where=where, got=error if str(error) else type(error).__name__) from None
    if not isinstance(values, dict):
        raise Refused("not a JSON object", where=where, got=shown(values), expected='{"path": ..., "caption": ...}')
    return values


def _unique(pairs: list[tuple[str, Any]]) -> Values:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key twice")
    return values


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _parquet(table: Path) -> Iterator[tuple[int, Values]]:
    try:
        with pyarrow.parquet.ParquetFile(table, memory_map=True) as file:
            names = _check_header(file.schema_arrow.names, table)
            number = 0
            for batch in file.iter_batches(_BATCH):
                columns = [values_of(column, table) for column in batch.columns]
                for cells in zip(*columns, strict=True):
                    number += 1
                    yield number, dict(zip(names, cells, strict=True))
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Refused("a damaged Parquet table", where=table, got=error) from None
