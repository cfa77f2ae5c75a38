"""The page that `mmdit demo` ends with: one HTML file that plays the clips and shows every figure."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdit import files
from mmdit.errors import Refused
from mmdit.report.log import loss_lines, read_log
from mmdit.report.page import TYPES, data_uri, environment
from mmdit.report.plots import line_chart

FORMAT = 1
SHOWN = 24  # clips of one kind on the page; all of them are beside it in the folder
TITLES = {"trained": "Combinations it has seen", "held-out": "Combinations it has never seen"}
SOURCES = {"real": "real", "reconstructed": "through the codec", "generated": "generated"}
STEPS = {
    "make-clips": "make the clips",
    "encode": "encode them",
    "train": "train",
    "generate": "generate",
    "score": "score",
    "report": "write this page",
}


def write_demo_report(demo_folder: str | Path) -> Path:
    """Writes report.html into the demo's folder from its summary.json, run/metrics.jsonl and clips; returns its path.

    The page needs nothing else: the clips are inside it, and it makes no requests. Raises Refused when the summary is
    missing, damaged or newer than this mmdit, or when a file that it names is missing.
    """
    folder = Path(demo_folder)
    summary = _read_summary(folder / "summary.json")
    try:
        page = environment().get_template("demo.html.j2").render(_view(folder, summary))
    except KeyError as error:
        raise Refused(
            "the summary is incomplete", where=folder / "summary.json", expected=f"the key {error}"
        ) from error
    path = folder / "report.html"
    files.write_text(path, page)
    return path


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        version = summary["format"]
    except FileNotFoundError:
        raise Refused("no summary to report on", where=path, fix="run mmdit demo first") from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Refused("the summary cannot be read", where=path, got=f"{type(error).__name__}: {error}") from error
    if version > FORMAT:
        raise Refused("a newer mmdit wrote this summary", where=path, got=f"format {version}", expected=FORMAT)
    return summary


def _view(folder: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows."""
    order = list(dict.fromkeys(row["attribute"] for row in summary["scores"]))  # JSON with sorted keys has lost it
    return {
        "quick": summary["quick"],
        "folder": folder.as_posix(),
        "headline": _headline(summary["scores"]),
        "timings": _timings(summary["timings"]),
        "galleries": [gallery for gallery in _galleries(folder, summary["gallery"], order) if gallery["cards"]],
        "stills": [{"uri": _uri(folder, still["file"]), "prompt": still["prompt"]} for still in summary["stills"]],
        "reconstructions": [
            pair | {key: _uri(folder, pair[key]) for key in ("original", "reconstruction")}
            for pair in summary["reconstructions"]
        ],
        "tables": _score_tables(summary["scores"]),
        "confusions": [_confusion(key, table) for key, table in _ordered(summary["confusion"], order)],
        "loss_chart": _loss_chart(folder / "run" / "metrics.jsonl"),
        "machine": summary["machine"],
        "settings": summary["settings"],
        "figures": summary["figures"],
        "example": next((item["prompt"] for item in summary["gallery"] if item["prompt"]), None),
        "label": next((item["label"] for item in summary["gallery"] if item["label"]), None),
    }


def _uri(folder: Path, name: str) -> str:
    """A file of the demo's folder as a data: address."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()) or path.suffix not in TYPES:
        raise Refused("the summary names a file that is no clip of the demo", where=folder / "summary.json", got=name)
    try:
        return data_uri(path)
    except OSError as error:
        raise Refused(
            "a file that the summary names cannot be read", where=path, got=error.strerror, fix="run mmdit demo again"
        ) from error


def _ordered(values: Mapping[str, Any], order: Sequence[str]) -> list[tuple[str, Any]]:
    """The items of a table with the keys in `order` first, in that order."""
    return sorted(values.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order))


def _galleries(folder: Path, items: Sequence[Mapping[str, Any]], order: Sequence[str]) -> list[dict[str, Any]]:
    kinds = (
        ("trained", "prompt", TITLES["trained"], "These garments, in these colours, moving like this."),
        (
            "held-out",
            "prompt",
            TITLES["held-out"],
            "Each part of the prompt is known, but this garment in this colour with this motion was kept from it.",
        ),
        ("trained", "label", "From a label alone", "Only the garment was asked for; the rest is its own choice."),
        ("held-out", "label", "From a label alone, combinations never seen", ""),
    )
    galleries = []
    for combination, by, title, text in kinds:
        chosen = [i for i in items if i["combination"] == combination and bool(i["prompt"]) == (by == "prompt")]
        galleries.append(_gallery(folder, chosen, order) | {"title": title, "text": text})
    return galleries


def _gallery(folder: Path, items: Sequence[Mapping[str, Any]], order: Sequence[str]) -> dict[str, Any]:
    cards = []
    for item in items[:SHOWN]:
        wanted = item.get("wanted") or {}
        marks = [
            {"name": name, "wrong": key in wanted and wanted[key] != name, "attribute": key}
            for key, name in _ordered(item["read"], order)
        ]
        cards.append({"uri": _uri(folder, item["file"]), "text": item["prompt"] or item["label"], "marks": marks})
    return {"cards": cards, "count": len(items)}


def _headline(scores: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The scores that sum the demo up: clips generated from prompts, for combinations it has seen."""
    return [
        row
        for row in scores
        if (row["clips"], row["combinations"], row["condition"]) == ("generated", "trained", "prompt")
    ]


def _score_tables(scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One table for each kind of combinations: a row an attribute, a column a kind of clips."""
    tables = []
    for combinations, title in TITLES.items():
        rows = [row for row in scores if row["combinations"] == combinations]
        columns = sorted(
            dict.fromkeys((row["clips"], row["condition"]) for row in rows),
            key=lambda column: (list(SOURCES).index(column[0]), column[1] == "label"),
        )
        cells = {(row["attribute"], row["clips"], row["condition"]): row for row in rows}
        heads = [
            {"name": SOURCES[clips], "from": f"from a {condition}" if clips == "generated" and condition else ""}
            for clips, condition in columns
        ]
        body = [
            (attribute, [cells.get((attribute, *column)) for column in columns])
            for attribute in dict.fromkeys(row["attribute"] for row in rows)
        ]
        if rows:
            tables.append({"title": title, "heads": heads, "rows": body})
    return tables


def _confusion(attribute: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """Counts with their share of the row; rows that are all zero are left out."""
    rows = []
    for i, (name, counts) in enumerate(zip(table["names"], table["counts"], strict=True)):
        total = sum(counts)
        cells = [{"count": n, "share": n / total if total else 0, "right": i == j} for j, n in enumerate(counts)]
        if total:
            rows.append({"name": name, "cells": cells})
    wrong = sum(cell["count"] for row in rows for cell in row["cells"] if not cell["right"])
    return {"attribute": attribute, "names": table["names"], "rows": rows, "wrong": wrong}


def _timings(timings: Mapping[str, float]) -> dict[str, Any]:
    apart = ("total", "peak_memory_gib")
    steps = [(STEPS.get(key, key), value) for key, value in _ordered(timings, list(STEPS)) if key not in apart]
    longest = max((value for _, value in steps), default=1.0)
    rows = [{"name": name, "seconds": value, "share": value / longest if longest else 0} for name, value in steps]
    return {"rows": rows, "total": timings["total"], "peak_memory_gib": timings.get("peak_memory_gib")}


def _loss_chart(path: Path) -> str:
    """The training loss (each step pale, its running mean bold) and the held-out loss over the steps, as SVG."""
    try:
        log = read_log(path)
    except OSError as error:
        raise Refused("no training log to report on", where=path, got=error.strerror) from error
    if log.damaged:
        number, line = log.damaged[0]
        raise Refused("the training log is damaged", where=path, got=f"{line!r} in row {number}")
    return line_chart(loss_lines(log.rows), x_title="step", y_title="loss")
