"""Windows: which spans of a source become clips."""

import math
from dataclasses import dataclass

from mmdit.errors import Refused

ROUNDING = 2e-3  # seconds by which a source may be said to be shorter than it is: containers round their time stamps


@dataclass(frozen=True)
class Windows:
    """How many clips each source gives, and how far apart they begin.

    Args:
        count: 1 for the beginning, n for as many spread evenly, None for all that fit.
        step: seconds from the beginning of one to that of the next, for `count` None; None: the length of a clip, so
            that they touch and do not overlap.

    Raises:
        Refused: numbers out of range, or a step where windows are counted.
    """

    count: int | None = 1
    step: float | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 1:
            raise Refused("no windows a video", got=self.count, expected="1 or more, or all")
        if self.step is not None and not (math.isfinite(self.step) and self.step > 0):
            raise Refused("the step of windows is out of range", got=self.step, expected="more than 0 seconds")
        if self.step is not None and self.count is not None:
            raise Refused("a step of windows", got=f"{self.count} a video", expected="all windows")

    def starts(self, room: float, clip: float) -> list[float]:
        """The seconds at which windows begin, rising, the first one 0.

        Args:
            room: by how many seconds the last one may begin later than the first. clip: seconds that a clip lasts.
        """
        room = max(room, 0.0)
        if self.count == 1:
            return [0.0]
        if self.count is not None:
            return sorted({round(room * number / (self.count - 1), 6) for number in range(self.count)})
        step = clip if self.step is None else self.step
        return [round(number * step, 6) for number in range(math.floor((room + ROUNDING) / step) + 1)]
