"""The results of `mmdit bench gpu` as Markdown."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdit.tools.gpu_parts import read

if TYPE_CHECKING:
    from mmdit.tools.gpu_parts import Part

Row = dict[str, Any]
SLOWER = 1.05  # times the best backend's time from which on the default is not the one that the table says


def table(folder: Path, parts: "Mapping[str, Part]") -> str:
    """A section for each part that has a result in the folder; the others are named."""
    results = {name: read(folder / f"{name}.json") for name in parts if (folder / f"{name}.json").exists()}
    lines = ["# One GPU", ""]
    about = next((result for result in results.values() if "machine" in result), None)
    if about is not None:
        told = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
        small = " Small networks: these figures say only that all of it works." if about["tiny"] else ""
        lines += [f"{told}. Targets are those of one H200.{small}", ""]
    for name, result in results.items():
        part = parts[name]
        lines += [f"## {part.title}", ""]
        lines += [f"`{name}`, {result['date']}, commit {result['commit']}.", ""] if "date" in result else []
        lines += [*TABLES[part.kind](result["rows"]), ""] if result["rows"] else []
        if not result["done"]:
            lines += [f"Not all of it: {result['error'] or 'it goes on with the same command'}.", ""]
    missing = [f"`{name}`" for name in parts if name not in results]
    return "\n".join([*lines, *([f"Not run: {', '.join(missing)}.", ""] if missing else [])])


def _attention(rows: list[Row]) -> list[str]:
    kernels = list(dict.fromkeys(name for row in rows for name in (*row.get("seconds", {}), *row.get("errors", {}))))
    lines = _head(["shape", *(f"{name}, ms" for name in kernels), "fastest", "TFLOP/s", "best default", "taken"])
    for row in rows:
        if "fastest" not in row:
            lines.append(_line([row["row"], *[""] * len(kernels), row["error"], "", "", row.get("taken", "")]))
            continue
        seconds, taken = row["seconds"], row["taken"]
        if row["slower"] is None:
            taken += " (cannot run)"
        elif row["slower"] > SLOWER:
            taken = f"**{taken}, {row['slower']:.2f} times as long**"
        cells = [f"{seconds[name] * 1e3:.2f}" if name in seconds else "-" for name in kernels]
        rate = f"{row['flops'] / seconds[row['fastest']] / 1e12:.3g}"
        lines.append(_line([row["row"], *cells, row["fastest"], rate, row["best"], taken]))
    reasons = {f"{name}: {why}" for row in rows for name, why in row.get("errors", {}).items()}
    return [*lines, "", *(f"- {reason[:160]}" for reason in sorted(reasons))]


def _steps(rows: list[Row]) -> list[str]:
    lines = _head(["way", "ms", "clips/s", "TFLOP/s", "share of the product", "of the data sheet", "GB",
                   "speed, times the first", "memory, of the first", "target", "distance"])  # fmt: skip
    first = rows[0]
    for row in rows:
        if row.get("error"):
            lines.append(_line([row["way"], row["error"][:120], *[""] * 9]))
            continue
        cells = [row["way"], f"{row['seconds'] * 1e3:.1f}", f"{row['clips_per_s']:.1f}",
                 f"{row['flops_per_s'] / 1e12:.3g}", _percent(row["share"]), _percent(row["sheet_share"]),
                 _over(row["memory"], 1e9)]  # fmt: skip
        against = ["", ""]
        if not first.get("error"):
            against = [f"{first['seconds'] / row['seconds']:.2f}", _over(row["memory"], first["memory"])]
        lines.append(_line([*cells, *against, *_distance(row["clips_per_s"], row["target"], " clips/s")]))
    return lines


def _sampling(rows: list[Row]) -> list[str]:
    lines = _head(["way", "s", "images/s", "times DiTPipeline", "target", "distance", "networks apart by"])
    for row in rows:
        if row.get("error"):
            lines.append(_line([row["way"], row["error"][:120], *[""] * 5]))
            continue
        times = row["times"]
        told = ["", "", ""] if times is None else [f"{times:.2f}", *_distance(times, row["target"], "")]
        lines.append(_line([row["way"], f"{row['seconds']:.2f}", f"{row['images_per_s']:.2f}", *told,
                            f"{row['networks_apart']:.1e}"]))  # fmt: skip
    return lines


def _distance(value: float, target: float | None, unit: str) -> list[str]:
    """The target, and how far above or below it the value is."""
    return ["", ""] if target is None else [f"{target:g}{unit}", f"{value / target - 1:+.0%}"]


def _over(value: float | None, other: float) -> str:
    return "" if value is None else f"{value / other:.3g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), _line(["---"] * len(cells))]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |"


TABLES = {"attention": _attention, "steps": _steps, "sampling": _sampling}
