"""Samples that a run drew while it was trained, as a page shows them: the latest, and some of each earlier step."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdit.report.page import TYPES, data_uri

LATEST = 24  # samples of the latest step
EARLIER_STEPS = 8  # the first, the one before the latest, and some evenly between
EARLIER = 6  # samples of each of them
BYTES = 12_000_000  # of all files together; a page is a third larger


def run_samples(run_folder: Path) -> dict[str, Any] | None:
    """{"latest": step, "earlier": [step, ...] newest first, "columns", "steps": how many}; None where there are none.

    A step is {"step", "cards", "count"}; a card {"uri", "is_video", "prompt", "label", "seed"}, the last three None
    where they are not known. Cards are left out for which BYTES has no room, or whose file cannot be read.
    """
    found = sorted(
        (int(path.name.removeprefix("step-")), path)
        for path in (run_folder / "samples").glob("step-*")
        if path.name.removeprefix("step-").isdecimal()
    )
    steps: list[dict[str, Any]] = []
    room = BYTES
    for number, (step, path) in enumerate([*found[-1:], *reversed(_spread(found[:-1], EARLIER_STEPS))]):
        entries = _entries(path)
        cards, room = _cards(path, entries[: EARLIER if number else LATEST], room)
        steps.append({"step": step, "cards": cards, "count": len(entries)})
    if not steps or not any(step["count"] for step in steps):
        return None
    earlier = [step for step in steps[1:] if step["cards"]]
    columns = max((len(step["cards"]) for step in earlier), default=0)
    return {"latest": steps[0], "earlier": earlier, "columns": columns, "steps": len(found)}


def _spread(items: Sequence[tuple[int, Path]], most: int) -> list[tuple[int, Path]]:
    """At most `most` of the items, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _entries(folder: Path) -> list[dict[str, Any]]:
    """What samples.json lists; without a readable one, the folder's clips and pictures."""
    try:
        listed = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
        entries = [entry for entry in listed if isinstance(entry, dict) and isinstance(entry.get("file"), str)]
    except (OSError, ValueError, TypeError):
        entries = []
    return entries or [{"file": path.name} for path in sorted(folder.glob("*")) if path.suffix in TYPES]


def _cards(folder: Path, entries: Sequence[dict[str, Any]], room: int) -> tuple[list[dict[str, Any]], int]:
    """The cards, and what is left of the room in bytes."""
    cards = []
    for entry in entries:
        path = folder / entry["file"]
        try:
            if path.suffix not in TYPES or not path.resolve().is_relative_to(folder.resolve()):
                continue
            size = path.stat().st_size
            if size > room:
                continue
            uri = data_uri(path)
        except (OSError, ValueError):  # ValueError: a name with a NUL
            continue
        room -= size
        is_video = path.suffix == ".mp4"
        cards.append({"uri": uri, "is_video": is_video, **{key: entry.get(key) for key in ("prompt", "label", "seed")}})
    return cards, room
