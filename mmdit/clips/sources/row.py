"""From what a source says about one video to a source clip: the same checks for every kind of source."""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from mmdit.clips.part import Part
from mmdit.clips.sources.checks import Notes, check_text, fault_of, shown
from mmdit.clips.sources.clip import DEFAULT_SPLIT, OWN_COLUMNS, SourceClip, SourceRules
from mmdit.clips.sources.labels import Labels
from mmdit.errors import Refused

_OWN = frozenset(OWN_COLUMNS)


class Rows:
    """Makes the clips of one source."""

    def __init__(self, rules: SourceRules, labels: Labels, notes: Notes, split: str = DEFAULT_SPLIT) -> None:
        """`split` is that of rows without one."""
        self.rules, self.labels, self.notes = rules, labels, notes
        self._split = split
        self._checked: set[str] = set()

    def clip(self, path: str, values: Mapping[str, Any], where: str, part: Part | None = None) -> SourceClip | None:
        """The clip of one row, or None where the rules leave it out.

        `path` is checked already. Of `values` caption, label and split are text or None, start and end numbers or None;
        a label may be a whole number. All else becomes an attribute: text as it is, None not at all, the rest as JSON.

        Raises:
            Refused: a value of another type, a NUL or text that is not UTF-8, a bad label, an empty span.
        """
        start, end = _seconds(values.get("start"), "start", where), _seconds(values.get("end"), "end", where)
        if end is not None and end <= (start or 0.0):
            raise Refused(
                "an empty span", where=where, got=f"start {start or 0.0:g}, end {end:g}", expected="start < end"
            )
        caption = self._caption(values.get("caption"), path, where)
        label = self.labels.name(values.get("label"), where)
        split = _text(values.get("split"), "split", where).strip() or self._split
        attributes = {
            name: self._attribute(name, value, where)
            for name, value in values.items()
            if name not in _OWN and value is not None
        }
        if caption is None:
            if self.rules.no_caption == "refuse":
                raise Refused("a clip without a caption", where=where, fix="caption it, or let such clips be left out")
            if self.rules.no_caption == "skip":
                self.notes.add("left out: without a caption", where)
                return None
            self.notes.add("without a caption", where)
        return SourceClip(path, caption, label, split, attributes, start, end, part)

    def _caption(self, value: object, path: str, where: str) -> str | None:
        text = _raw(value, "caption", where)
        if (fault := fault_of(text)) is not None:
            if self.rules.bad_captions == "refuse":
                raise Refused(fault, where=where, got=shown(text), fix="save it as UTF-8 text, or let it be dropped")
            self.notes.add("caption dropped: a NUL character or no UTF-8", where)
            text = ""
        if text.startswith("\ufeff"):
            self.notes.add("byte order mark removed from a caption", where)
        text = text.lstrip("\ufeff").strip()
        if not text and self.rules.captions == "name":
            text = " ".join(re.split(r"[\s_-]+", path.rpartition("/")[2].rpartition(".")[0])).strip()
            self.notes.add("captioned by the file name", where)
        most = self.rules.max_caption
        if most is not None and len(text) > most:
            text = text[:most].rstrip()
            self.notes.add(f"caption cut to {most} characters", where)
        return text or None

    def _attribute(self, name: str, value: object, where: str) -> str:
        if name not in self._checked:
            check_text(name, where)
            self._checked.add(name)
        if isinstance(value, str):
            return check_text(value, where)
        if isinstance(value, bytes):
            raise Refused("bytes where text is expected", where=where, got=f"{name} of {len(value)} bytes")
        return check_text(json.dumps(value, ensure_ascii=False, default=str), where)


def _raw(value: object, name: str, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refused(f"bad {name}", where=where, got=shown(value), expected="text")
    return value


def _text(value: object, name: str, where: str) -> str:
    return check_text(_raw(value, name, where), where)


def _seconds(value: object, name: str, where: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise Refused(f"bad {name}", where=where, got=shown(value), expected="seconds, 0 or more")
