"""Measured points with the lines that were predicted for them, several plots in a picture file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mmdit import files


@dataclass(frozen=True)
class Curve:
    """Points (at, values), drawn as dots; `line`, of as many values, is drawn dashed. colour: any of matplotlib's."""

    name: str
    colour: str
    at: Sequence[float]
    values: Sequence[float]
    line: Sequence[float] | None = None


@dataclass(frozen=True)
class Panel:
    """One plot; log: both axes logarithmic."""

    x: str
    y: str
    curves: Sequence[Curve]
    log: bool = False


def draw_panels(path: Path, panels: Sequence[Panel], *, title: str, columns: int = 2) -> None:
    """Writes a .png or .svg file, or what else matplotlib can write."""
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.5 * columns, 4 * rows), layout="constrained")
    figure.suptitle(title)
    for number, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(rows, columns, number), panel)
    with files.new_file(path) as part:
        figure.savefig(part, format=path.suffix[1:], dpi=110)


def _draw(axes: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        axes.plot(curve.at, curve.values, "o" if curve.line else "o-", color=curve.colour, label=curve.name)
        if curve.line is not None:
            axes.plot(curve.at, curve.line, "--", color=curve.colour)
    axes.set(xlabel=panel.x, ylabel=panel.y)
    axes.grid(visible=True, alpha=0.3)
    if panel.log:
        axes.set(xscale="log", yscale="log")
    if len(panel.curves) > 1:
        axes.legend(frameon=False)
