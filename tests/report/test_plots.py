import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmdit.report.plots import Line, line_chart, log_ticks, number, smooth, thin, ticks


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_span_the_range_with_round_steps(low: float, span: float) -> None:
    high = low + span
    values = ticks(low, high)
    assert values[0] <= low + 1e-6 * span
    assert values[-1] >= high - 1e-6 * span
    assert 2 <= len(values) <= 13
    step = values[1] - values[0]
    lead = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(lead - round_step) for round_step in (1, 2, 5, 10)) < 1e-3


def test_ticks_of_a_single_value() -> None:
    assert len(ticks(0.0, 0.0)) >= 2
    assert len(ticks(3.0, 3.0)) >= 2


@pytest.mark.parametrize(
    ("value", "text"), [(1500, "1,500"), (0.25, "0.25"), (3.0, "3"), (-0.5, "-0.5"), (2e9, "2e+09")]
)
def test_tick_labels(value: float, text: str) -> None:
    assert number(value) == text


def test_smoothing_keeps_a_constant_and_halves_noise() -> None:
    assert smooth([(i, 2.0) for i in range(10)], 3) == [(i, 2.0) for i in range(10)]
    noisy = smooth([(i, (-1.0) ** i) for i in range(100)], 5)
    assert max(abs(y) for _, y in noisy[5:]) < 0.2


def test_a_chart_is_well_formed_and_escapes_names() -> None:
    chart = line_chart(
        [Line("a < b", [(0, 1.0), (1, 0.5), (2, math.nan)], "red"), Line("nothing", [], "blue")],
        x_title="s & t",
        y_title="y",
    )
    root = ElementTree.fromstring(chart)
    paths = [path.get("d") or "" for path in root.findall(".//path")]
    assert [path.count("L") for path in paths] == [1]  # two points: the one that is not a number is left out
    assert "nothing" not in chart


def test_a_chart_of_one_point_or_of_none() -> None:
    ElementTree.fromstring(line_chart([Line("a", [(5, 1.0)], "red", "dots")], x_title="x", y_title="y"))
    assert line_chart([Line("a", [], "red")], x_title="x", y_title="y") == ""


@given(st.floats(1e-6, 1e6), st.floats(1.0, 1e9))
def test_logarithmic_ticks_span_the_range(low: float, times: float) -> None:
    values = log_ticks(low, low * times)
    assert values[0] <= low * (1 + 1e-6)
    assert values[-1] >= low * times * (1 - 1e-6)
    assert values == sorted(values)
    assert 2 <= len(values) <= 13


def heights(chart: str) -> list[float]:
    """Of the curve's points, from the top."""
    path = ElementTree.fromstring(chart).findall(".//path")[0].get("d") or ""
    return [float(place.split()[1]) for place in path[1:].split(" L")]


def test_a_wide_range_is_logarithmic_and_a_narrow_or_negative_one_is_not() -> None:
    def steps(*values: float) -> list[float]:
        line = Line("a", list(enumerate(values)), "red")
        found = heights(line_chart([line], x_title="x", y_title="y", log=True))
        return [b - a for a, b in itertools.pairwise(found)]

    one, two = steps(1.0, 0.1, 0.01)
    assert one == pytest.approx(two, abs=0.2)
    one, two = steps(1.0, 0.8, 0.6)
    assert one == pytest.approx(two, abs=0.2)
    one, two = steps(-10.0, 0.0, 10.0)
    assert one == pytest.approx(two, abs=0.2)


def test_thinning_keeps_spikes_and_order() -> None:
    points = [(i, math.sin(i)) for i in range(5000)]
    points[1234] = (1234, 50.0)
    points[4321] = (4321, -50.0)
    thinned = thin(points, 100)
    assert len(thinned) <= 100
    assert points[1234] in thinned and points[4321] in thinned
    assert list(thinned) == sorted(thinned)
    assert thin(points[:100], 100) == points[:100]


def test_a_line_without_a_name_is_not_in_the_legend() -> None:
    chart = line_chart([Line("", [(0, 1), (1, 2)], "red"), Line("b", [(0, 1)], "blue")], x_title="x", y_title="y")
    assert [span.tail for span in ElementTree.fromstring(chart).findall(".//i")] == ["b"]
