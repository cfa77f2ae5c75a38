"""The labels of a source: which there are, and in which order."""

import re
from collections.abc import Sequence
from pathlib import Path

from mmdit.clips.sources.checks import check_text, read_text, shown
from mmdit.errors import Refused

CLASSES = "classes.txt"
MAX_NUMBER = 100_000
"""Numbers that are labels stay below it: each costs a row of the network's table, used or not."""
_WHOLE = re.compile(r"[0-9]+")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE)
_FIX = f"name the labels, one a line in the order of their numbers, in {CLASSES} beside the table"


def _int(value: int | str) -> int:
    """A whole number; of a text of thousands of digits, which int() refuses, one that is as far out of range."""
    return value if isinstance(value, int) else int(value[:100])


def read_classes(path: Path) -> list[str] | None:
    """The names in a file, one a line in the order of their numbers; None when it is not there."""
    if not path.is_file():
        return None
    names = [line.strip() for line in check_text(read_text(path), str(path)).rstrip().split("\n")]
    if "" in names:
        raise Refused("a label has no name", where=f"{path}, line {names.index('') + 1}", fix="remove the empty line")
    return names


class Labels:
    """Turns what rows say into label names, and refuses what is no label.

    `names` are the labels in the order of their numbers: a row then says a name or a number below their count. None:
    the rows decide: whole numbers stay in numeric order, with no label for a gap to move, and names are sorted; the two
    do not mix. `only_names`: a text of digits is a name like any other.

    Raises Refused for names that are given twice, or that are another label's number.
    """

    def __init__(self, names: Sequence[str] | None, where: object, *, only_names: bool = False) -> None:
        self._given = None if names is None else list(names)
        self._numbers = {name: number for number, name in enumerate(self._given or [])}
        self._only_names = only_names
        self._seen: dict[str, int | None] = {}  # a label, and its number if it is one
        self._first: dict[bool, tuple[str, str]] = {}  # is it a number: the first row that says so, and what it says
        for number, name in enumerate(self._given or []):
            if self._numbers[name] != number:
                raise Refused("two labels have one name", where=where, got=shown(name))
            if _WHOLE.fullmatch(name) and _int(name) != number and not only_names:
                raise Refused("a label named by another's number", where=where, got=f"{name} as label {number}")

    def name(self, value: object, where: str) -> str | None:
        """The label's name; None where there is none.

        Raises Refused for a number out of range, a fraction, an unknown name, and a name where numbers are.
        """
        if isinstance(value, str):
            value = check_text(value.strip(), where)
        if value is None or value == "":
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise self._refused("a label that is neither name nor whole number", value, where)
        if self._given is not None:
            return self._known(self._given, value, where)
        text = str(value)
        if text not in self._seen:
            number = self._number(value, where)
            text = text if number is None else str(number)
            self._check_mixing(text, number, where)
            self._seen[text] = number
        return text

    def names(self) -> list[str]:
        """All labels in the order of their numbers."""
        if self._given is not None:
            return self._given
        numbers = [number for number in self._seen.values() if number is not None]
        return [str(number) for number in range(max(numbers) + 1)] if numbers else sorted(self._seen)

    def _known(self, given: list[str], value: int | str, where: str) -> str:
        if isinstance(value, str) and value in self._numbers:
            return value
        if isinstance(value, int) or _WHOLE.fullmatch(value):
            number = _int(value)
            if 0 <= number < len(given) and not self._only_names:
                return given[number]
        raise self._refused("a label out of range", value, where)

    def _number(self, value: int | str, where: str) -> int | None:
        if self._only_names:
            return None
        if isinstance(value, str) and not _WHOLE.fullmatch(value):
            if _NUMBER.fullmatch(value):
                raise self._refused("a label that is neither name nor whole number", value, where)
            return None
        number = _int(value)
        if not 0 <= number < MAX_NUMBER:
            raise self._refused("a label out of range", value, where)
        return number

    def _check_mixing(self, text: str, number: int | None, where: str) -> None:
        is_number = number is not None
        self._first.setdefault(is_number, (where, text))
        if len(self._first) == 2:
            (row, name), (other, count) = self._first[False], self._first[True]
            raise Refused(
                "labels that are names and labels that are numbers", where=f"{row} and {other}",
                got=f"{shown(name)} and {count}", expected="one kind", fix=_FIX,
            )  # fmt: skip

    def _refused(self, what: str, value: object, where: str) -> Refused:
        if self._given is None:
            return Refused(
                what, where=where, got=shown(value), expected=f"a name, or a number from 0 to {MAX_NUMBER - 1}",
                fix=_FIX if isinstance(value, int | str) else "store labels as text or whole numbers",
            )  # fmt: skip
        last = len(self._given) - 1
        return Refused(what, where=where, got=shown(value), expected=f"0 to {last}, or one of the {last + 1} names")
