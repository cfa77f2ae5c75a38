"""What a network makes of no label and no prompt: only what it was trained without now and then can be left out.

Guidance leads away from the null condition. A network that was always told its label and its caption has learnt none.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mmdit.errors import Refused
from mmdit.pipelines.request import Condition

GUIDANCE = 2.0
"""The scale where nobody says one, and there is a null condition."""
WORDS = {"label": "label", "text": "prompt"}


@dataclass(frozen=True)
class NullConditions:
    """Of which conditions a network knows the absence.

    Attributes:
        labels, text: whether it takes labels, and prompts.
        dropped: those that it was trained without now and then, of "label" and "text"; None where nobody said it: then
            nothing is refused.
    """

    labels: bool
    text: bool
    dropped: Sequence[str] | None

    def default_guidance(self, negatives: Sequence[str] = ("",)) -> float:
        """`GUIDANCE`, or 1 where there is nothing to lead away from."""
        return 1.0 if self._unknown([Condition(negative, None) for negative in negatives]) else GUIDANCE

    def check(self, guidance: float, conditions: Sequence[Condition], negatives: Sequence[str]) -> None:
        """Refused for a condition left out that the network was always told, and for guidance away from such a one."""
        for missing in self._unknown(conditions):
            word = WORDS[missing]
            raise Refused(f"this model was never trained without a {word}", got=f"no {word}", fix=f"give a {word}")
        if guidance == 1:
            return
        for missing in self._unknown([Condition(negative, None) for negative in negatives]):
            instead = ", or name a negative prompt" if missing == "text" and not self.labels else ""
            raise Refused(
                f"guidance leads away from no {WORDS[missing]}, and this model was never trained without one",
                got=f"guidance {guidance:g}", expected="1, which is without guidance",
                fix=f"ask for 1{instead}, or train with conditions.drop_{missing} above 0",
            )  # fmt: skip

    def _unknown(self, conditions: Sequence[Condition]) -> list[str]:
        """What these conditions leave out, and the network was always told."""
        if self.dropped is None:
            return []
        left_out = {
            "label": self.labels and any(condition.label is None for condition in conditions),
            "text": self.text and any(not condition.prompt for condition in conditions),
        }
        return [name for name, out in left_out.items() if out and name not in self.dropped]
