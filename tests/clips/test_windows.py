"""Windows: where clips begin in a source."""

import pytest

from mmdit.clips.windows import Windows
from mmdit.errors import Refused


@pytest.mark.parametrize(
    ("windows", "length", "starts"),
    [
        (Windows(), 10.0, [0.0]),
        (Windows(), 1.0, [0.0]),
        (Windows(3), 10.125, [0.0, 4.0, 8.0]),
        (Windows(3), 2.0, [0.0]),  # no room to spread: one, not three of the same
        (Windows(3), 1.0, [0.0]),
        (Windows(None), 10.0, [0.0, 2.125, 4.25, 6.375]),
        (Windows(None), 10.624, [0.0, 2.125, 4.25, 6.375, 8.5]),  # a rounded time stamp
        (Windows(None, 4.0), 10.125, [0.0, 4.0, 8.0]),
        (Windows(None, 5.0), 1.0, [0.0]),
    ],
)
def test_where_clips_of_17_frames_at_8_a_second_begin(windows: Windows, length: float, starts: list[float]) -> None:
    assert windows.starts(length - 2.125, 2.125) == starts


@pytest.mark.parametrize("values", [{"count": 0}, {"count": None, "step": 0.0}, {"count": 2, "step": 1.0}])
def test_impossible_windows_are_refused(values: dict[str, float | None]) -> None:
    with pytest.raises(Refused):
        Windows(**values)
