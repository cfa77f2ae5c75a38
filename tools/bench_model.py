"""`mmdit bench model`: whole training steps from latents, beside what else one would train with."""

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmdit.training.model_speed import Case, Result

# What is measured where nothing is said: an image network, and a video one.
DEFAULTS = (("DiT-S/2", (1, 32, 32), 4), ("DiT-S/2", (16, 16, 16), 1))

# Elements of the queries whose attention is measured; the latter is 100,000 sequences of 4 tokens of DiT-XL.
ON_CPU, ON_GPU = 1_600_000, 500_000_000


def main(
    presets: Annotated[list[str] | None, typer.Argument(help="Sizes, as DiT-S/2. [default: DiT-S/2]")] = None,
    grid: Annotated[str | None, typer.Option(help="FRAMESxHEIGHTxWIDTH of the latents. [1x32x32; 16x16x16]")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Clips a step. [4 of one frame, else 1]")] = None,
    layout: Annotated[str | None, typer.Option(help="Of a grid of several frames. [factorized]")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only ways whose name has this in it.")] = None,
    leave_out: Annotated[list[str] | None, typer.Option(help="No ways whose name has this in it.")] = None,
    attention: Annotated[bool, typer.Option("--attention", help="Compare attention kernels by shape instead.")] = False,
    runs: Annotated[int, typer.Option(min=1, help="So many of each, in turns; the median is told.")] = 5,
    threads: Annotated[int, typer.Option(min=1, help="Threads on a CPU.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measures training steps: forward, backward and AdamW on latents that are there.

    Beside ours stand diffusers' classes of equal width, depth and tokens, a plain eager loop, and ours without each of
    the things that make it quicker. The device's own rate is that of the quicker of two products, in the same turns.

    \b
    busy    ms that the process was on a core, over all threads: where others share the machine, compare these
    FLOP/s  of the model's multiply-accumulates, each two operations, three times a forward pass
    share   of the device's own rate in that precision
    times   as quick as the plain eager loop in float32, or as the first way that was measured

    Example:
      mmdit bench model --threads 2 --leave-out compiled
      mmdit bench model DiT-XL/2 --batch 64 --device cuda
      mmdit bench model DiT-XL/2 --attention --device cuda
    """
    import torch

    from mmdit.tools import clip_options
    from mmdit.tools.bench_output import tell
    from mmdit.training.model_speed import measure, ways

    torch.set_num_threads(threads)
    device = clip_options.device_of(device)
    figures: list[dict[str, Any]] = []
    lines: list[str] = []
    if attention:
        figures, lines = _attention(presets or ["DiT-S/2"], device, runs)
        tell(figures, lines, as_json=as_json, device=device)
        return
    for case in _cases(presets, grid, batch, layout):
        chosen = [way for way in ways(case, device) if _is_wanted(way.name, only, leave_out)]
        results = measure(case, chosen, device, runs)
        lines += ["", *_table(case, results)]
        figures.append(
            {"case": case.name, "tokens": case.tokens, "ways": [_plain(case, row, results) for row in results]}
        )
    tell(figures, lines, as_json=as_json, device=device)


def _attention(presets: list[str], device: str, runs: int) -> tuple[list[dict[str, Any]], list[str]]:
    from mmdit.models.presets import preset_options
    from mmdit.training.attention_speed import measure_attention, shapes

    figures: list[dict[str, Any]] = []
    lines = [f"{'shape':58} {'kernel':28} {'ms':>9} {'GFLOP/s':>9}"]
    for preset in presets:
        heads, width = (preset_options(preset)[name] for name in ("num_heads", "hidden_size"))
        for shape in shapes(width // heads, heads, ON_GPU if device.startswith("cuda") else ON_CPU):
            for precision in ("float32", "bfloat16"):
                name = f"{shape.name}, {shape.batch} x {heads} heads of {shape.head_dim}, {precision}"
                for row in measure_attention(shape, precision, device, runs):
                    told: dict[str, Any] = {"shape": name, "kernel": row.name}
                    if row.error:
                        figures.append(told | {"error": row.error})
                        lines.append(f"{name:58} {row.name:28} {row.error[:60]}")
                        continue
                    rate = shape.flops / row.median
                    figures.append(told | {"seconds": row.median, "flops_per_s": rate})
                    lines.append(f"{name:58} {row.name:28} {row.median * 1e3:9.2f} {rate / 1e9:9.1f}")
    return figures, lines


def _cases(presets: list[str] | None, grid: str | None, batch: int | None, layout: str | None) -> "list[Case]":
    from mmdit.errors import Refused
    from mmdit.models.block import LAYOUTS
    from mmdit.models.checks import token_grid
    from mmdit.models.presets import preset_options
    from mmdit.training.model_speed import Case

    if layout is not None and layout not in LAYOUTS:
        raise Refused("unknown layout", where="--layout", got=layout, expected=f"one of {', '.join(LAYOUTS)}")
    wanted = [(preset, shape, clips) for preset in presets or ["DiT-S/2"] for _, shape, clips in DEFAULTS]
    if grid is not None:
        sizes = tuple(int(size) if size.isdigit() else 0 for size in grid.split("x"))
        if len(sizes) != 3 or min(sizes) < 1 or sizes[1] != sizes[2]:
            raise Refused("bad grid", where="--grid", got=grid, expected="FRAMESxSIZExSIZE, as 16x32x32")
        clips = DEFAULTS[sizes[0] > 1][2]
        wanted = [(preset, (sizes[0], sizes[1], sizes[2]), clips) for preset in presets or ["DiT-S/2"]]
    cases = []
    for preset, shape, clips in wanted:
        token_grid(shape, preset_options(preset)["patch_size"])
        by_itself = "space" if shape[0] == 1 else layout or "factorized"
        cases.append(Case(preset, by_itself, shape, batch or clips))
    return cases


def _is_wanted(name: str, only: list[str] | None, leave_out: list[str] | None) -> bool:
    return (not only or any(part in name for part in only)) and not any(part in name for part in leave_out or ())


def _figures(case: "Case", row: "Result", results: "Sequence[Result]") -> dict[str, float]:
    """Of a way that ran."""
    flops = row.flops / row.median
    rates = [other.flops / other.median for other in results if _is_product(other) and _like(other, row)]
    figures = {
        "seconds": row.median,
        "busy": statistics.median(row.busy),
        "flops_per_s": flops,
        "share": flops / max(rates),
    }
    if not _is_product(row):
        steps = [other for other in results if not _is_product(other) and not other.error]
        base = next((other for other in steps if other.way.name == "plain eager, float32"), steps[0])
        more = {"tokens_per_s": case.tokens / row.median, "memory": float(row.memory)}
        figures |= {**more, "times": base.median / row.median}
    return figures


def _is_product(row: "Result") -> bool:
    return row.way.name.startswith("product ")


def _like(one: "Result", other: "Result") -> bool:
    return one.way.precision == other.way.precision and not one.error


def _plain(case: "Case", row: "Result", results: "Sequence[Result]") -> dict[str, Any]:
    return {"way": row.way.name, **({"error": row.error} if row.error else _figures(case, row, results))}


def _table(case: "Case", results: "Sequence[Result]") -> list[str]:
    head = f"{'ms':>9} {'busy':>9} {'tokens/s':>9} {'GFLOP/s':>9} {'share':>6} {'MB':>7} {'times':>6}"
    lines = [f"{case.name}: {case.tokens} tokens, {case.flops / 1e9:.1f} GFLOP a step", f"{'way':46} {head}"]
    for row in results:
        if row.error:
            lines.append(f"{row.way.name:46} {row.error[:70]}")
            continue
        told = _figures(case, row, results)
        line = f"{row.way.name:46} {told['seconds'] * 1e3:9.1f} {told['busy'] * 1e3:9.1f} "
        if _is_product(row):
            lines.append(f"{line}{'':9} {told['flops_per_s'] / 1e9:9.1f}")
        else:
            rates = f"{told['tokens_per_s']:9.0f} {told['flops_per_s'] / 1e9:9.1f} {told['share']:6.1%}"
            lines.append(f"{line}{rates} {told['memory'] / 1e6:7.0f} {told['times']:6.2f}")
    return lines
