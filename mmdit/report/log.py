"""What a run's metrics.jsonl says: its lines, and curves of them."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.report.plots import Line, smooth

DOTS = 60  # more points of a curve run into each other
WHOLE = 4_000_000  # bytes of a log of which every line is read, some 12 000 lines

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Log:
    """The lines of a log, oldest first; each has a whole number as its "step"."""

    rows: list[dict[str, Any]]
    damaged: list[tuple[int, str]]
    """(row from 1, how it begins) of the lines that are no JSON table with a step."""


def read_log(path: Path) -> Log:
    """Reads a log.

    Of one larger than WHOLE some lines, evenly spaced, and all validations, so that time and memory are
    bounded. What follows the last line break is a line that a dying process tore: it is left out.

    Raises OSError where there is no such file.
    """
    every = 1 + path.stat().st_size // WHOLE
    taken: list[tuple[int, bytes]] = []
    with open(path, "rb") as handle:
        last = None
        for number, line in enumerate(handle, 1):
            if not line.endswith(b"\n"):
                break
            last = number, line
            if number % every == 0 or b'"val_loss"' in line:
                taken.append(last)
    if last is not None and (not taken or taken[-1] != last):
        taken.append(last)
    log = Log([], [])
    for number, line in taken:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            log.rows.append(row)
        else:
            log.damaged.append((number, line.decode("utf-8", "replace").rstrip("\n")[:40]))
    return log


def is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def series(rows: Iterable[Row], key: str) -> list[tuple[float, float]]:
    """(step, value) of the rows that have a finite one."""
    return [(row["step"], row[key]) for row in rows if is_finite(row.get(key))]


def with_mean(points: list[tuple[float, float]], colour: str, names: tuple[str, str] = ("", "")) -> list[Line]:
    """The points pale, and their running mean bold."""
    return [
        Line(names[0], points, colour, "faint"),
        Line(names[1], smooth(points, max(1, len(points) // 60)), colour),
    ]


def loss_lines(rows: Iterable[Row]) -> list[Line]:
    """The training loss as it was logged (pale) and its running mean, and the held-out loss."""
    rows = list(rows)
    held_out = series(rows, "val_loss")
    return [
        *with_mean(series(rows, "loss"), "var(--teal)", ("as logged", "training")),
        Line("held-out clips", held_out, "var(--accent)", "dots" if len(held_out) <= DOTS else "line"),
    ]
