"""`mmdit bench train`, `load` and `memory`: the loop's own cost, its loader, and the memory that is planned."""

import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.bench_output import tell

if TYPE_CHECKING:
    from mmdit.training.config import RunConfig

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
    """Measures what of a training step is neither forward, backward nor optimizer step; 3 % is the target.

    Example:
      mmdit bench train demo_fashion data.store=my_store --steps 20
    """
    from mmdit.training.cost import measure_loop

    config, costs = _config(recipe, overrides, threads), []
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            costs.append(measure_loop(config, Path(folder) / "run", steps))
    step = statistics.median(cost.step for cost in costs)
    parts = {name: statistics.median(cost.parts[name] for cost in costs) for name in costs[0].parts}
    own = statistics.median(cost.own_share for cost in costs)
    lines = [f"{'step':22} {step * 1e3:9.2f} ms"]
    lines += [f"{name:22} {seconds * 1e3:9.2f} ms {seconds / step:7.2%}" for name, seconds in parts.items()]
    lines.append(f"the loop's own cost: {own:.2%} of the step (target: under 3 %)")
    tell({"step": step, "parts": parts, "own_share": own}, lines, as_json=as_json)


def load(
    recipe: Recipe = "demo_fashion", overrides: Overrides = None, steps: Steps = 20, runs: Runs = 3,
    threads: Threads = 1, as_json: Json = False,
) -> None:  # fmt: skip
    """Measures how many batches a second are read, beside how many training takes; 20 times as many is the target.

    Example:
      mmdit bench load demo_fashion data.store=my_store
    """
    from mmdit.training.cost import WAITING, measure_loading, measure_loop

    config, ratios, read, taken = _config(recipe, overrides, threads), [], [], []
    for _ in range(runs):  # in turns, so that a slow minute slows both
        with tempfile.TemporaryDirectory() as folder:
            cost = measure_loop(config, Path(folder) / "run", steps)
        taken.append(1 / (cost.step - cost.parts[WAITING]))
        read.append(1 / statistics.median(measure_loading(config, 3 * steps)))
        ratios.append(read[-1] / taken[-1])
    figures = {
        "batches_per_second_read": statistics.median(read), "batches_per_second_taken": statistics.median(taken),
        "ratio": statistics.median(ratios),
    }  # fmt: skip
    lines = [f"read  {figures['batches_per_second_read']:9.2f} batches/s",
             f"taken {figures['batches_per_second_taken']:9.2f} batches/s by training without its loader",
             f"the loader is {figures['ratio']:.1f} times as fast (target: 20)"]  # fmt: skip
    tell(figures, lines, as_json=as_json)


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
