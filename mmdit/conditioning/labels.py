"""Class labels: names for people, numbers for the network."""

import difflib
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mmdit.errors import Refused

SHOWN = 12  # names listed in a refusal; more would hide the sentence


@dataclass(frozen=True)
class Labels:
    """The labels a network knows; a label's id is its position here.

    `null_id`, one past the last label, stands for "no label": it is the condition of the unguided half of guidance.
    Users cannot ask for it by number. Raises Refused for names that are empty, not text, or given twice.
    """

    names: tuple[str, ...]

    def __init__(self, names: Iterable[str]) -> None:
        object.__setattr__(self, "names", tuple(names))
        for position, name in enumerate(self.names):
            if not isinstance(name, str) or not name.strip():
                raise Refused("a label has no name", where=f"label {position}", got=repr(name), expected="text")
            if name in self.names[:position]:
                raise Refused("two labels have one name", where=f"label {position}", got=repr(name))

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    @property
    def null_id(self) -> int:
        """The id of "no label": the number of labels."""
        return len(self.names)

    def id(self, label: object) -> int:
        """The id of a label given by name, by number, or by a number written as text.

        Raises Refused, with the nearest known name or the range, for anything else.
        """
        if isinstance(label, str):
            if label in self.names:
                return self.names.index(label)
            folded = [name.casefold() for name in self.names]
            if folded.count(label.strip().casefold()) == 1:
                return folded.index(label.strip().casefold())
            number = _whole_number(label)
            if number is None:
                raise self._unknown(label)
        else:
            try:
                number = operator.index(label)  # type: ignore[arg-type]
            except TypeError:
                number = None
            if number is None or isinstance(label, bool):
                raise Refused("a label is a name or a whole number", got=repr(label), expected=self._known())
        if not 0 <= number < len(self.names):
            expected = f"0 to {len(self.names) - 1}, or a name ({self._known()})"
            raise Refused("there is no label of this number", got=number, expected=expected)
        return number

    def ids(self, labels: Sequence[object]) -> list[int]:
        """The ids of several labels; Refused at the first that is unknown."""
        return [self.id(label) for label in labels]

    def _known(self) -> str:
        more = f" and {len(self) - SHOWN} more" if len(self) > SHOWN else ""
        return ", ".join(self.names[:SHOWN]) + more

    def _unknown(self, label: str) -> Refused:
        by_folded = {name.casefold(): name for name in self.names}
        near = difflib.get_close_matches(label.strip().casefold(), by_folded, n=1, cutoff=0.4)
        fix = f"did you mean {by_folded[near[0]]!r}?" if near else None
        return Refused("unknown label", got=repr(label), expected=f"one of: {self._known()}", fix=fix)


def _whole_number(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:
        return None
