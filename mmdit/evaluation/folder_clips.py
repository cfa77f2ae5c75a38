"""Clips that lie in a folder, as a set to measure (`mmdit.evaluation.clip_sets`)."""

import json
from pathlib import Path
from typing import Any

from mmdit.clips.decode import ReadRequest
from mmdit.clips.probe import Probed
from mmdit.clips.reader import ClipReader
from mmdit.clips.source import SourceRules, find_source
from mmdit.errors import Refused
from mmdit.evaluation.clip_sets import READERS, RealClips, Row, drawn
from mmdit.evaluation.view import View
from mmdit.latents.facts import find_facts, where_of


class FolderClips(RealClips):
    """Videos, or images where the view is of one frame, below a folder, or as a table or a manifest in it lists them.

    They are in an order drawn by `seed` from the sha256 of their bytes, and what the table says of them goes along.

    Args:
        count: None for all.
        drawn_start: longer videos are cut at a place drawn by `seed`, not at their beginning.

    Raises:
        Refused: no clips, fewer than asked for, or one that cannot be read.
    """

    def __init__(self, folder: Path, view: View, *, count: int | None, seed: int, drawn_start: bool = False) -> None:
        found = find_source(folder, rules=SourceRules(media="all" if view.frames == 1 else "video"))
        known = _captions(folder)
        asked = [clip for clip in found.clips if known is None or clip.path in known]
        reader = ClipReader(READERS)
        facts = find_facts(found.folder, asked, {}, reader)
        listed = []
        for clip in asked:
            fact = facts[clip.path]
            if fact.probed is None:
                raise Refused("a clip cannot be read", where=folder / clip.path, got=fact.reason or fact.sha256)
            first, frames = _span(clip, fact.probed)
            row = {**clip.attributes, "caption": clip.caption, "label": clip.label, **(known or {}).get(clip.path, {})}
            row |= {"source": clip.path, "first": first, "frames": frames, "fps": fact.probed.fps or 1.0,
                    "height": fact.probed.size[0], "width": fact.probed.size[1], "part": fact.part}  # fmt: skip
            listed.append((f"{fact.sha256}-{first}-{frames}", row))
        taken = drawn(listed, count, seed, folder)
        rows = [row for _, row in taken]
        start = seed if drawn_start else None
        super().__init__([id for id, _ in taken], rows, view, seed=start, where=folder, reader=reader)
        self._root = found.folder

    def _skipped(self, number: int) -> int:
        return 0  # no more is read than is shown

    def _request(self, number: int) -> ReadRequest:
        row = self.rows[number]
        file, offset, length = where_of(self._root, row["source"], row["part"])
        first = row["first"] + self.starts[number]
        return ReadRequest(
            path=str(file.absolute()), offset=offset, length=length, frames=self._view.span(row["frames"]),
            size=(row["height"], row["width"]), fps=row["fps"], start=first / row["fps"] if first else None, stride=1,
        )  # fmt: skip


def _span(clip: Any, probed: Probed) -> tuple[int, int]:
    """The number of the first frame of a clip in its video, and the number of its frames."""
    if probed.kind == "image":
        return 0, 1
    rate = probed.fps or 1.0
    total = probed.frames if probed.frames is not None else int(probed.duration * rate + 1e-3)
    first = round((clip.start or 0.0) * rate)
    last = total if clip.end is None else min(total, round(clip.end * rate))
    return first, max(1, last - first)


def _captions(folder: Path) -> dict[str, Row] | None:
    """Of a folder that `mmdit generate` filled: prompt and label of each file; what else lies there, a sheet of all
    among it, is no sample."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {row["file"]: {"caption": row.get("prompt"), "label": row.get("label")} for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise Refused("not the manifest of a folder of clips", where=path, got=error) from None
