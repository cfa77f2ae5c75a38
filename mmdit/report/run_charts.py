"""What a run's page draws of its log, beside the losses."""

from typing import Any

from mmdit.report.log import Log, is_finite, series, with_mean
from mmdit.report.plots import Line, line_chart

MANY = 12  # a curve of more points has no dots
LABELS = 24  # labels that are shown, those with the highest loss
SMALL = {"width": 520, "height": 240}
UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def noise_chart(log: Log) -> str:
    """The held-out loss over the steps, a curve for each noise level."""
    curves: dict[float, list[tuple[float, float]]] = {}
    for row in log.rows:
        for key, loss in _table(row.get("val_noise")).items():
            try:
                level = float(key)
            except ValueError:
                continue
            if is_finite(loss) and is_finite(level):
                curves.setdefault(level, []).append((row["step"], loss))
    lines = []
    for number, (level, points) in enumerate(sorted(curves.items())):
        share = 100 * number / max(1, len(curves) - 1)
        colour = f"color-mix(in oklch, var(--accent) {share:.0f}%, var(--teal))"
        lines.append(Line(f"{level:g}", points, colour, "dots" if len(points) < MANY else "line"))
    return line_chart(lines, x_title="step", y_title="held-out loss by noise level", log=True, **SMALL)


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def labels(log: Log) -> dict[str, Any] | None:
    """The held-out loss of each label at the latest step that has them, highest first, beside what it was at first."""
    rows = [row for row in log.rows if _table(row.get("val_labels"))]
    if not rows:
        return None
    first = _table(rows[0]["val_labels"])
    losses = {name: loss for name, loss in rows[-1]["val_labels"].items() if is_finite(loss)}
    ordered = sorted(losses, key=lambda name: (-losses[name], name))
    highest = max([*losses.values(), *(first[name] for name in ordered if is_finite(first.get(name)))], default=0.0)

    def share(loss: object) -> float | None:
        return max(0.0, loss / highest) if is_finite(loss) and highest > 0 else None  # type: ignore[operator]

    bars = [
        {"name": name, "loss": losses[name], "share": share(losses[name]) or 0, "first": share(first.get(name))}
        for name in ordered[:LABELS]
    ]
    return {"step": rows[-1]["step"], "first_step": rows[0]["step"], "bars": bars, "count": len(losses)}


def charts(log: Log) -> list[dict[str, str]]:
    """The small charts: (title, the latest value, chart) of each key that was logged."""
    charts = []
    for key, title, unit in (
        ("lr", "Learning rate", ""),
        ("grad_norm", "Gradient norm", ""),
        ("clips_per_s", "Clips a second", ""),
        ("tokens_per_s", "Tokens a second", ""),
        ("model_flops_per_s", "Model operations a second", "FLOP/s"),
        ("peak_share", "Share of the device's peak", "%"),
        ("memory_bytes", "Memory, most so far", "GiB"),
        ("data_wait_share", "Waiting for data, share of a step", "%"),
    ):
        points = series(log.rows, key)
        if not points:
            continue
        scale, shown = {"%": (0.01, "%"), "GiB": (2.0**30, "GiB")}.get(unit, (1.0, unit))
        if unit == "FLOP/s":
            scale, prefix = next(((s, p) for s, p in UNITS if max(y for _, y in points) >= s), (1.0, ""))
            shown = prefix + unit
        points = [(step, value / scale) for step, value in points]
        even = key in ("lr", "memory_bytes")  # they do not tremble
        lines = [Line("", points, "var(--teal)")] if even else with_mean(points, "var(--teal)")
        chart = line_chart(lines, x_title="step", y_title=title, log=key == "grad_norm", **SMALL)
        charts.append({"title": title, "latest": f"{_short(points[-1][1])} {shown}".strip(), "svg": chart})
    return charts


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
