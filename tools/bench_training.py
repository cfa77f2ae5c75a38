"""`mmdit bench train`, `load` and `memory`: the loop's own cost, its loader, and the memory that is planned."""

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.bench_output import tell

if TYPE_CHECKING:
    from mmdit.training.config import RunConfig
    from mmdit.training.cost import LoopCost

Recipe = Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of a shipped one.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Changes to it, as data.store=STORE.")]
Steps = Annotated[int, typer.Option(min=3, help="Steps in a run.")]
Runs = Annotated[int, typer.Option(min=1, help="So many runs; the median is told.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads on a CPU.")]
Json = Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")]


def train(
    recipe: Recipe = "demo_fashion", overrides: Overrides = None, steps: Steps = 20, runs: Runs = 3,
    threads: Threads = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Measures a training step and its parts: loader, averages, log, checkpoint, ...; beside it a plain float32 loop.

    All but forward, backward and optimizer step is the loop's own cost: 3 % is the target. The plain loop is the same
    recipe in float32 without any of what makes a step quicker on a CPU.

    Example:
      mmdit bench train demo_fashion data.store=my_store --steps 20
    """
    from mmdit.training.cost import measure_loop

    config = _config(recipe, overrides, threads)
    costs: dict[bool, list[LoopCost]] = {False: [], True: []}
    for _ in range(runs):  # in turns, so that a slow minute slows both
        for plain, told in costs.items():
            with tempfile.TemporaryDirectory() as folder:
                told.append(measure_loop(config, Path(folder) / "run", steps, plain=plain))
    ours = costs[False]
    step, beside = (statistics.median(cost.step for cost in told) for told in costs.values())
    parts = {name: statistics.median(cost.parts[name] for cost in ours) for name in ours[0].parts}
    own = statistics.median(cost.own_share for cost in ours)
    figures = _step_figures(ours[0], step) | {"parts": parts, "own_share": own, "plain_step": beside}
    lines = _step_lines(figures)
    lines += [f"{name:22} {seconds * 1e3:9.2f} ms {seconds / step:7.2%}" for name, seconds in parts.items()]
    lines += [f"the loop's own cost: {own:.2%} of the step (target: under 3 %)",
              f"plain loop, float32    {beside * 1e3:9.2f} ms: {beside / step:.2f} times as long"]  # fmt: skip
    tell(figures, lines, as_json=as_json, device=ours[0].device)


def _step_figures(cost: "LoopCost", step: float) -> dict[str, Any]:
    """What a step of so many seconds says, beside the rate of this device's own products."""
    from mmdit.training.memory import DTYPES
    from mmdit.training.precision import product_rates

    (rate,) = product_rates(DTYPES[cost.precision], device=cost.device)
    return {
        "precision": cost.precision, "batches": cost.batches, "step": step, "tokens_per_s": cost.tokens_per_s,
        "flops_per_s": cost.flops_per_s, "product_flops_per_s": rate, "share": cost.flops_per_s / rate,
        "memory": cost.memory,
    }  # fmt: skip


def _step_lines(figures: dict[str, Any]) -> list[str]:
    rates = f"{figures['flops_per_s'] / 1e9:.1f} GFLOP/s, {figures['share']:.1%} of a large product's here"
    return [
        f"{figures['precision']}, batches of {', '.join(figures['batches'])}",
        f"{figures['tokens_per_s']:.0f} tokens/s, {rates}, {figures['memory'] / 1e6:.0f} MB held at most",
        f"{'step':22} {figures['step'] * 1e3:9.2f} ms",
    ]


def load(
    recipe: Recipe = "demo_fashion", overrides: Overrides = None, steps: Steps = 20, runs: Runs = 3,
    threads: Threads = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Measures how many batches a second are read, beside how many training takes; 20 times as many is the target.

    Beside both stands torch's DataLoader on the same store, which draws latents and nothing else.

    Example:
      mmdit bench load demo_fashion data.store=my_store
    """
    from mmdit.training.cost import WAITING, measure_loading, measure_loop, measure_plain_loading

    config = _config(recipe, overrides, threads)
    rates: dict[str, list[float]] = {"read": [], "DataLoader": [], "taken": []}
    for _ in range(runs):  # in turns, so that a slow minute slows all
        with tempfile.TemporaryDirectory() as folder:
            cost = measure_loop(config, Path(folder) / "run", steps)
        rates["taken"].append(1 / (cost.step - cost.parts[WAITING]))
        rates["read"].append(1 / statistics.median(measure_loading(config, 3 * steps)))
        rates["DataLoader"].append(1 / statistics.median(measure_plain_loading(config, 3 * steps)))
    read, plain, taken = map(statistics.median, rates.values())
    ratio = statistics.median(one / other for one, other in zip(rates["read"], rates["taken"], strict=True))
    figures = _step_figures(cost, 1 / taken) | {
        "batches_per_second_read": read, "batches_per_second_taken": taken, "batches_per_second_dataloader": plain,
        "ratio": ratio,
    }  # fmt: skip
    lines = [*_step_lines(figures),
             f"read       {read:9.2f} batches/s",
             f"DataLoader {plain:9.2f} batches/s, latents alone",
             f"taken      {taken:9.2f} batches/s by training without its loader",
             f"the loader is {ratio:.1f} times as fast (target: 20)"]  # fmt: skip
    tell(figures, lines, as_json=as_json, device=cost.device)


def memory(
    depth: Annotated[int | None, typer.Option(min=1, help="Blocks. [default: 12, as DiT-S has]")] = None,
    clips: Annotated[int, typer.Option(min=1, help="Clips a step.")] = 4,
    as_json: Json = False,
) -> None:
    """Compares the memory that `mmdit plan` says a step takes with what the CPU's allocator gave out in a real one.

    DiT-S/2 on 32x32 latents of images, and DiT-S/4 in the factorised layout on 8 frames of them; in float32 and
    bfloat16, with and without activation checkpointing, at once and in micro batches of half the clips. Fewer blocks
    take less time: the whole takes minutes.

    Example:
      mmdit bench memory --depth 4
    """
    from mmdit.training.memory import measure_step, memory_cases, trace_step

    figures: list[dict[str, Any]] = []
    for name, config, inputs, precision in memory_cases(depth):
        traced = trace_step(config, inputs, precision, on_gpu=False)
        for micro in sorted({clips, max(1, clips // 2)}, reverse=True):
            planned = traced.peak(clips, micro)
            measured = measure_step(config, inputs, precision, share=clips, micro_batch=micro)
            case, error = f"{name}, {micro} at once", planned / measured - 1
            figures.append({"case": case, "planned": planned, "measured": measured, "error": error})
            if not as_json:  # each takes a while
                sizes = f"planned {planned / 1e6:8.1f} MB, measured {measured / 1e6:8.1f} MB"
                print(f"{case:64} {sizes}, error {error:+.2%}", flush=True)
    tell(figures, [], as_json=as_json)


def _config(recipe: str, overrides: list[str] | None, threads: int) -> "RunConfig":
    import torch

    from mmdit.config import load_config
    from mmdit.training.config import RunConfig

    torch.set_num_threads(threads)
    return load_config(RunConfig, recipe, overrides or [])
