"""`mmdit bench growth`: how time and memory grow with tokens, frames, clips and depth."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmdit.report.panels import Panel
    from mmdit.training.growth import Point, Prediction

COLOURS = {"factorized": "#1f6feb", "joint": "#d1242f", "space": "#2da44e"}


def main(
    preset: Annotated[str, typer.Option(help="A size of the paper; it is measured with one block.")] = "DiT-S/2",
    most_tokens: Annotated[int, typer.Option(min=256, help="The longest clip.")] = 65536,
    precision: Annotated[str, typer.Option(help="float32, or bfloat16.")] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Threads on a CPU.")] = 1,
    plot: Annotated[Path | None, typer.Option(help="A .png or .svg file for the curves.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measures training steps on a CPU over the tokens of a clip, over clips and over blocks, beside what is predicted.

    Predicted are three constants, fitted to the points of 4,096 tokens at most: a start, one for each
    multiply-accumulate that grows with the tokens, and one for each of attention (T S^2 + S T^2, or (T S)^2).

    Example:
      mmdit bench growth --most-tokens 4096
    """
    import torch

    from mmdit.errors import Refused
    from mmdit.models import PRESETS
    from mmdit.pipelines.request import check_choice
    from mmdit.tools.bench_output import tell
    from mmdit.tools.progress import progress_line
    from mmdit.training.growth import crossing, fit, growth_cases, measure

    check_choice("precision", precision, ("float32", "bfloat16"))
    if preset not in PRESETS:
        raise Refused("unknown preset", where="--preset", got=preset, expected=", ".join(PRESETS))
    torch.set_num_threads(threads)
    cases, points = list(growth_cases(preset, most_tokens)), []
    with progress_line("measure", "steps", quiet=as_json) as advance:
        for number, case in enumerate(cases, start=1):
            points.append(measure(case, preset, precision))
            advance(number, len(cases), case.series)
    prediction, crossed = fit(points), crossing(points)
    if plot is not None:
        from mmdit.report.panels import draw_panels

        title = f"A training step of {preset}, {precision}, {threads} thread(s): dots measured, dashed lines predicted"
        draw_panels(plot, _panels(points, prediction), title=title)
    figures = {
        "points": [asdict(point) | {"predicted": prediction.seconds(point)} for point in points],
        "prediction": asdict(prediction), "crossing_tokens": crossed,
    }  # fmt: skip
    tell(figures, _lines(points, prediction, crossed), as_json=as_json)


def _panels(points: "Sequence[Point]", prediction: "Prediction") -> "list[Panel]":
    from mmdit.report.panels import Curve, Panel

    def curves(along: tuple[str, ...], *, memory: bool = False) -> list[Curve]:
        found = []
        for series in dict.fromkeys(point.case.series for point in points if point.case.along in along):
            mine = [point for point in points if point.case.series == series]
            at = [point.tokens if {"frames", "tokens"} >= set(along) else point.at for point in mine]
            colour = COLOURS[mine[0].case.layout]
            if memory:
                found.append(Curve(series, colour, at, [point.memory / 1e6 for point in mine]))
            else:
                predicted = [prediction.seconds(point) for point in mine]
                found.append(Curve(series, colour, at, [point.seconds for point in mine], predicted))
        return found

    return [
        Panel("tokens of a clip", "seconds a step", curves(("frames", "tokens")), log=True),
        Panel("tokens of a clip", "memory, MB", curves(("frames", "tokens"), memory=True), log=True),
        Panel("clips of 256 tokens", "seconds a step", curves(("clips",))),
        Panel("blocks, on 256 tokens", "seconds a step", curves(("blocks",))),
    ]


def _lines(points: "Sequence[Point]", prediction: "Prediction", crossed: float | None) -> list[str]:
    lines = [f"{'curve':32} {'at':>8} {'tokens':>8} {'seconds':>9} {'predicted':>9} {'MB':>9}"]
    for point in points:
        named = f"{point.case.series:32} {point.at:8} {point.tokens:8}"
        lines.append(f"{named} {point.seconds:9.3f} {prediction.seconds(point):9.3f} {point.memory / 1e6:9.1f}")
    where = "nowhere in this range" if crossed is None else f"from {crossed:,.0f} tokens on"
    return [*lines, f"joint takes longer than factorised: {where}"]
