"""Plots as SVG text, drawn by hand so that they take their colours from the page they stand in, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

Points = Sequence[tuple[float, float]]

DRAWN = 800  # points of a curve; more would not be told apart
WIDE = 4.0  # a range of so many times its smallest value is drawn on a logarithmic scale


@dataclass(frozen=True)
class Line:
    """One curve. kind: "line", "faint" (drawn thin and pale) or "dots" (a line with a dot at each point).

    name: for the legend; "" for none. colour: a CSS colour, such as "var(--accent)".
    """

    name: str
    points: Points
    colour: str
    kind: str = "line"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that span [low, high]; about `about` of them."""
    span = (high - low) or abs(high) or 1.0
    rough = span / max(1, about)
    power = 10 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda value: abs(value - rough))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(first + 1, last) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten that span [low, high], both above 0; over many powers, only some of these."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    every = max(1, (last - first) // 6)
    values = [factor * 10.0**power for power in range(first, last + every + 1, every) for factor in factors]
    begin = max(i for i, value in enumerate(values) if value <= low * (1 + 1e-9))
    end = min(i for i, value in enumerate(values) if value >= high * (1 - 1e-9))
    return values[begin : max(end, begin + 1) + 1]


def number(value: float) -> str:
    """A tick label: 1,500 · 0.25 · 3 · 2e+09."""
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value == round(value) else f"{value:.10g}"


def smooth(points: Points, reach: int) -> list[tuple[float, float]]:
    """Running mean over `reach` points on each side; fewer at the beginning, where a loss falls steeply."""
    values = [y for _, y in points]
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    result = []
    for i, (x, _) in enumerate(points):
        first, last = i - min(reach, i), min(i + min(reach, i), len(points) - 1)
        result.append((x, (sums[last + 1] - sums[first]) / (last + 1 - first)))
    return result


def thin(points: Points, most: int) -> Points:
    """At most `most` of the points: of each of equal runs the lowest and the highest, so that every spike stays."""
    if len(points) <= most:
        return points
    length = -(-len(points) // (most // 2))
    kept = []
    for first in range(0, len(points), length):
        run = range(first, min(first + length, len(points)))
        ends = {min(run, key=lambda i: points[i][1]), max(run, key=lambda i: points[i][1])}
        kept += [points[i] for i in sorted(ends)]
    return kept


def line_chart(
    lines: Sequence[Line], *, x_title: str, y_title: str, width: int = 720, height: int = 320, log: bool = False
) -> str:
    """A chart of some curves with axes, grid and legend, as an HTML <figure> with an <svg> in it.

    Points that are not finite are left out, and long curves are thinned. Returns "" when there is nothing to draw.

    Args:
        log: draw y on a logarithmic scale where the bold curves are above 0 and span a WIDE range.
    """
    lines = [replace(line, points=[(x, y) for x, y in line.points if math.isfinite(x + y)]) for line in lines]
    lines = [replace(line, points=thin(line.points, DRAWN)) for line in lines if line.points]
    if not lines:
        return ""
    every = [point for line in lines for point in line.points]
    low, high = _bounds(lines)
    log = log and low > 0 and high > WIDE * low
    xs, ys = ticks(0, max(x for x, _ in every)), log_ticks(low, high) if log else ticks(low, high)
    left, right, top, bottom = max(64, 14 + 11 * max(len(number(y)) for y in ys)), 26, 18, 58

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (x - xs[0]) / (x_end - xs[0]) * (width - left - right)
        # A noisy curve may leave the range; it is cut at the frame.
        y = min(ys[-1], max(ys[0], y))
        up = math.log(y / ys[0]) / math.log(ys[-1] / ys[0]) if log else (y - ys[0]) / (ys[-1] - ys[0])
        return round(across, 1), round(height - bottom - up * (height - top - bottom), 1)

    x_end = max(max(x for x, _ in every), xs[0] + 1e-9)
    parts = [
        f'<figure class="plot">{_legend(lines)}<svg class="chart" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(y_title)} over {escape(x_title)}">'
    ]
    for y in ys:
        _, v = place(xs[0], y)
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{v}" y2="{v}"/>')
        parts.append(f'<text class="tick" x="{left - 8}" y="{v + 4}" text-anchor="end">{number(y)}</text>')
    for x in xs:
        if x <= x_end:
            u, v = place(x, ys[0])
            parts.append(f'<text class="tick" x="{u}" y="{v + 22}" text-anchor="middle">{number(x)}</text>')
    parts.append(
        f'<text class="axis" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">'
        f"{escape(x_title)}</text>"
    )
    parts += [_curve(line, [place(x, y) for x, y in line.points]) for line in lines]
    return "\n".join([*parts, "</svg></figure>"])


def _bounds(lines: Sequence[Line]) -> tuple[float, float]:
    """The range of y: what the bold curves span, for faint ones may shoot far out."""
    bold = [line for line in lines if line.kind != "faint"] or lines
    values = [y for line in bold for _, y in line.points]
    return min(values), max(values)


def _curve(line: Line, places: list[tuple[float, float]]) -> str:
    path = "M" + " L".join(f"{u} {v}" for u, v in places)
    thin = ' stroke-width="1" opacity="0.3"' if line.kind == "faint" else ' stroke-width="2.2"'
    drawn = f'<path d="{path}" fill="none" stroke="{line.colour}" stroke-linejoin="round"{thin}/>'
    if line.kind == "dots" or len(places) == 1:
        drawn += "".join(f'<circle cx="{u}" cy="{v}" r="3.4" fill="{line.colour}"/>' for u, v in places)
    return drawn


def _legend(lines: Sequence[Line]) -> str:
    keys = (
        f'<span><i style="background:{line.colour}{";opacity:0.35" if line.kind == "faint" else ""}"></i>'
        f"{escape(line.name)}</span>"
        for line in lines
        if line.name
    )
    return f'<figcaption class="legend">{"".join(keys)}</figcaption>'
