"""The page of a training run: where it stands, its curves, samples over time, recipe, and what was skipped."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml

from mmdit import files
from mmdit.errors import Refused
from mmdit.report.log import Log, is_finite, loss_lines, read_log, series
from mmdit.report.page import environment
from mmdit.report.plots import line_chart
from mmdit.report.run_charts import charts, labels, noise_chart
from mmdit.report.samples import run_samples

RECENT = 50  # lines of the log from which the speed is taken
SHOWN = 12  # lines of a list: weights, checkpoints, reasons


def write_report(folder: Path) -> Path:
    """Writes report.html into a run's folder, and returns its path; the page needs nothing else, and makes no requests.

    It is made from config.yaml, metrics.jsonl, samples/, init.json, quarantine.parquet and checkpoints' state.json.
    What of these is missing or damaged is left out with a word, so that it can be written at any moment of a run; its
    size and the time that it takes are bounded.

    Raises:
        Refused: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise Refused("no run to report on", where=folder, expected="a folder that `mmdit train` wrote")
    page = environment().get_template("run.html.j2").render(_view(folder))
    path = folder / "report.html"
    # Not flushed to disk, which would hold up the training: a page that is lost is written again.
    files.write_bytes(path, page.encode("utf-8", "replace"), durable=False)
    return path


def _view(folder: Path) -> dict[str, Any]:
    """Everything that the template shows."""
    try:
        log = read_log(folder / "metrics.jsonl")
        logged_at = (folder / "metrics.jsonl").stat().st_mtime
    except OSError:
        log, logged_at = Log([], []), None
    recipe = _read_text(folder / "config.yaml")
    held_out = {int(step): loss for step, loss in series(log.rows, "val_loss")}
    return {
        "name": folder.resolve().name,
        "folder": folder.as_posix(),
        "now": _now(log, _values(recipe)),
        "logged_at": None if logged_at is None else f"{datetime.fromtimestamp(logged_at, UTC):%Y-%m-%d %H:%M} UTC",
        "damaged": len(log.damaged),
        "loss_chart": line_chart(loss_lines(log.rows), x_title="step", y_title="loss", log=True),
        "noise_chart": noise_chart(log),
        "labels": labels(log),
        "charts": charts(log),
        "samples": run_samples(folder),
        "skipped": _skipped(log),
        "quarantine": _quarantine(folder / "quarantine.parquet"),
        "init": _init(folder / "init.json"),
        "checkpoints": _checkpoints(folder, held_out),
        "recipe": recipe,
    }


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def _read_table(path: Path) -> dict[str, Any] | None:
    """A JSON table, or None where there is no whole one."""
    try:
        table = json.loads(_read_text(path) or "")
    except ValueError:
        return None
    return table if isinstance(table, dict) else None


def _values(recipe: str | None) -> dict[str, Any]:
    try:
        values = yaml.safe_load(recipe or "")
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _now(log: Log, recipe: dict[str, Any]) -> dict[str, Any]:
    """Where the run stands; None for what is not known."""
    last = log.rows[-1] if log.rows else {}
    step, steps = last.get("step", 0), recipe.get("steps")
    steps = steps if isinstance(steps, int) and steps > 0 else None
    held_out, speed = series(log.rows, "val_loss"), series(log.rows, "clips_per_s")
    pace = _seconds_a_step(log.rows)
    losses = series(log.rows, "loss")
    return {
        "step": step,
        "steps": steps,
        "share": None if steps is None else min(1.0, step / steps),
        "is_finished": steps is not None and step >= steps,
        "loss": losses[-1][1] if losses else None,
        "held_out": {"step": held_out[-1][0], "loss": held_out[-1][1]} if held_out else None,
        "best": min(held_out, key=lambda point: point[1]) if held_out else None,
        "clips_per_s": speed[-1][1] if speed else None,
        "seconds_left": None if steps is None or pace is None else max(0, steps - step) * pace,
    }


def _seconds_a_step(rows: Sequence[dict[str, Any]]) -> float | None:
    """Over the latest lines since the run was last taken up, when "seconds" began anew."""
    ends = [(row["step"], row["seconds"]) for row in rows[-RECENT:] if is_finite(row.get("seconds"))]
    if not ends:
        return None
    first = last = ends[-1]
    for step, seconds in reversed(ends):
        if seconds > first[1] or step > first[0]:
            break
        first = step, seconds
    return (last[1] - first[1]) / (last[0] - first[0]) if last[0] > first[0] else None


def _skipped(log: Log) -> dict[str, Any]:
    """Steps without a finite loss or gradient: how many, and after which steps of the log."""
    counts = [(row["step"], row["skipped"]) for row in log.rows if isinstance(row.get("skipped"), int)]
    spans, before = [], (0, 0)
    for step, count in counts:
        if count > before[1]:
            spans.append({"after": before[0], "until": step, "count": count - before[1]})
        before = step, count
    return {"count": counts[-1][1] if counts else None, "spans": spans[-SHOWN:], "more": max(0, len(spans) - SHOWN)}


def _quarantine(path: Path) -> dict[str, Any] | None:
    """Clips that could not be read, by reason: as a store's quarantine.parquet lists them."""
    try:
        reasons = pyarrow.parquet.read_table(path, columns=["reason"]).column("reason").to_pylist()
    except (OSError, KeyError, pyarrow.ArrowException):
        return None
    return {"count": len(reasons), "reasons": Counter(map(str, reasons)).most_common(SHOWN)}


def _init(path: Path) -> dict[str, Any] | None:
    """What became of the weights that the run started from, where it did not start from random ones."""
    report = _read_table(path)
    if report is None:
        return None
    parts = []
    for key, says in (
        ("loaded", "taken over"), ("inflated", "made for video out of those of images"),
        ("left_out", "left out"), ("fresh", "new in this network"),
    ):  # fmt: skip
        names = report.get(key)
        names = list(map(str, names)) if isinstance(names, list) else []
        parts.append({"says": says, "count": len(names), "names": names[:SHOWN]})
    return {"source": str(report.get("source", "not known")), "parts": parts}


def _checkpoints(folder: Path, held_out: dict[int, float]) -> dict[str, Any]:
    """The newest checkpoints, newest first, with the held-out loss where it was measured at that step."""
    steps = sorted(
        int(name)
        for path in (folder / "checkpoints").glob("step-*")
        if (name := path.name.removeprefix("step-")).isdecimal()
    )
    measured = [step for step in steps if step in held_out]
    best = min(measured, key=lambda step: held_out[step]) if len(measured) > 1 else None
    rows = []
    for step in steps[: -SHOWN - 1 : -1]:
        state = _read_table(folder / "checkpoints" / f"step-{step:07d}" / "state.json")
        version = None if state is None else str(state.get("mmdit", "unknown"))
        rows.append({"step": step, "mmdit": version, "held_out": held_out.get(step), "is_best": step == best})
    return {"rows": rows, "count": len(steps)}
