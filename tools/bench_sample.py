"""`mmdit bench sample`: ways to sample faster side by side, with what they cost in quality."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mmdit.models.caching import Broadcast
    from mmdit.pipelines.comparison import Result

ATTRIBUTES = ("garment", "colour", "pattern", "motion")
CALIBRATED_ON = 8  # clips
FLOOR = 35.0  # dB
LATENTS = 32  # side of those of images
BATCH, IMAGES = 16, 4  # clips of a run, and images of random weights, at a time


def main(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="A run of the demo, one of its checkpoints, or its pipeline folder. Without one, images are sampled "
            "with random weights, beside diffusers' DiTPipeline."
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="The size of the network with random weights.")] = "DiT-S/2",
    prompts: Annotated[int, typer.Option(min=1, help="Clips that are made in each way.")] = 64,
    steps: Annotated[int, typer.Option(min=2, help="Steps of the plain way; the others have as many or fewer.")] = 12,
    reference_steps: Annotated[int, typer.Option(min=2, help="Steps of what all are compared with.")] = 50,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = 2.0,
    floor: Annotated[
        float | None,
        typer.Option(
            help="PSNR in dB that attention broadcast is calibrated to. [default: as mmdit calibrate did, or 35]"
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="So many timed runs; the median is told.")] = 3,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Clips at a time, and clips that are timed. [16, of random weights 4]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The seed of all.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Threads on a CPU.")] = 1,
    device: Annotated[str, typer.Option(help="Where to sample: cpu, cuda, ...")] = "cpu",
    broadcast: Annotated[
        Path | None,
        typer.Option(
            help="Settings of attention broadcast: read where the file is there, else calibrated and written. "
            "[default: what mmdit calibrate left, if --floor is not said]"
        ),
    ] = None,
    faster: Annotated[
        list[str] | None,
        typer.Option(
            help="Only this beside plain steps, as in mmdit generate; several at a time as first-block+compile; "
            "repeat it. [default: all]"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compares ways to sample: steps, network calls, seconds, PSNR, and attributes read by the embedded probe.

    Seconds are of the clock, CPU s of the processor: on a machine that others use, compare these. FLOP/s count the
    blocks that were computed, two for a multiply-accumulate; the share is that of a large product's rate here.
    PSNR is against many plain steps at the same seeds, and, in brackets, against as many plain steps as the way has.
    The prompts are the demo's validation prompts, so the model must be one of the demo's kind.

    Example:
      mmdit bench sample demo/run --prompts 64 --steps 12
      mmdit bench sample demo/run --faster first-block=0.2 --faster broadcast
      mmdit bench sample --preset DiT-S/2 --steps 25
    """
    import torch

    torch.set_num_threads(threads)
    if run is None:
        _beside_diffusers(preset, steps, batch or IMAGES, device, runs, as_json=as_json)
        return
    batch = batch or BATCH

    from mmdit.clips.made import prompts as made_prompts
    from mmdit.errors import Refused
    from mmdit.evaluation.probe import load_probe
    from mmdit.evaluation.score import columns
    from mmdit.pipelines.comparison import as_json as plain_values
    from mmdit.pipelines.comparison import compare, ways
    from mmdit.pipelines.faster import read_ways
    from mmdit.pipelines.loading import find_source, load_pipeline
    from mmdit.tools.bench_output import tell
    from mmdit.tools.progress import progress_line
    from mmdit.training.meter import memory_held
    from mmdit.training.precision import product_rates

    only = faster or ()
    wanted = not only or any("broadcast" in read_ways(word.split("+")) for word in only)
    source = find_source(run)
    if not source.has_text:
        raise Refused("this model reads no prompts", where=run, expected="a model of the demo's kind")
    asked = made_prompts("validation", prompts, seed)
    call = {"prompt": [row["caption"] for row in asked], "guidance_scale": guidance, "seed": seed, "batch_size": batch}
    pipeline = load_pipeline(source, device=device)
    found = _calibrate(pipeline, floor, {**call, "num_inference_steps": steps}, broadcast) if wanted else None
    with progress_line("sample", "runs", quiet=as_json) as advance:
        results = compare(
            lambda: load_pipeline(source, device=device),
            ways(pipeline.process, steps, reference_steps, found, only),
            runs=runs, call=call, read=load_probe().read, wanted=columns(asked, ATTRIBUTES), progress=advance,
        )  # fmt: skip
    (product,) = product_rates(torch.float32, device=device)
    timed, grid = min(batch, prompts), pipeline.latent_grid(*pipeline.default_size())
    rates = [_rates(row, timed, pipeline.transformer.config, grid, product) for row in results]
    figures: dict[str, Any] = {
        "clips": prompts, "timed": timed, "precision": "float32", "latent": [pipeline.codec.channels, *grid],
        "product_flops_per_s": product, "memory": memory_held(torch.device(device)),
        "ways": [row | more for row, more in zip(plain_values(results), rates, strict=True)],
        "broadcast": _as_json(found),
    }  # fmt: skip
    about = f"clips {prompts}, timed {timed}, float32, latents of {'x'.join(map(str, figures['latent']))}"
    held = f"{figures['memory'] / 1e6:.0f} MB held at most; a large product: {product / 1e9:.1f} GFLOP/s"
    lines = [f"{about}; {held}", *_table(results, rates), *_told(found, wanted)]
    tell(figures, lines, as_json=as_json, device=device)


def _beside_diffusers(preset: str, steps: int, images: int, device: str, runs: int, *, as_json: bool) -> None:
    from mmdit.errors import Refused
    from mmdit.models import PRESETS
    from mmdit.pipelines.sampling_speed import DTYPES, compare_pipelines
    from mmdit.tools.bench_output import tell

    if preset not in PRESETS:
        raise Refused("unknown preset", where="--preset", got=preset, expected=", ".join(PRESETS))
    size, figures = LATENTS, []
    lines = [f"{images} images of {preset}, latents of {size}x{size}, {steps} steps of DDPM with guidance",
             f"{'way':34} {'seconds':>8} {'images/s':>9} {'tokens/s':>9} {'GFLOP/s':>9} {'share':>6} {'MB':>7} "
             f"{'times':>6}"]  # fmt: skip
    for precision in DTYPES:
        for row in compare_pipelines(preset, size, steps, images, precision, device, runs, compiled=False):
            figures.append(row)
            if "error" in row:
                lines.append(f"{row['way']:34} {row['error'][:70]}")
                continue
            rates = f"{row['seconds']:8.2f} {row['images_per_s']:9.3f} {row['tokens_per_s']:9.0f}"
            rates += f" {row['flops_per_s'] / 1e9:9.1f} {row['share']:6.1%} {row['memory'] / 1e6:7.0f}"
            lines.append(f"{row['way']:34} {rates} {row['times']:6.2f}")
    tell(figures, lines, as_json=as_json, device=device)


def _calibrate(pipeline: Any, floor: float | None, call: dict[str, Any], path: Path | None) -> "Broadcast | None":
    """What the file `path` says, or the one beside the weights, or else what is found on prompts of its own.

    None where nothing keeps to the floor.
    """
    from mmdit.clips.made import prompts
    from mmdit.errors import Stopped
    from mmdit.pipelines.broadcast_file import read_stored, sampler_of, unlike
    from mmdit.pipelines.calibration import calibrate_broadcast, save_broadcast

    there = path or (pipeline.broadcast_file if floor is None else None)
    if there is not None and there.exists():
        stored = read_stored(there, pipeline.config.origin)
        note = unlike(stored.found_with, {**call, "sampler": sampler_of(pipeline)})
        if note is not None:
            print(f"note: {note}", file=sys.stderr)
        return stored.how
    pipeline.set_progress_bar_config(disable=True)
    rows = prompts("train", CALIBRATED_ON, call["seed"])
    call = {**call, "prompt": [row["caption"] for row in rows], "seed": call["seed"] + 1}
    try:
        found = calibrate_broadcast(pipeline, floor=FLOOR if floor is None else floor, **call)
    except Stopped:
        return None
    if path is not None:
        save_broadcast(path, found, pipeline)
    return found.how


def _rates(row: "Result", clips: int, network: Any, grid: tuple[int, int, int], product: float) -> dict[str, float]:
    """Of the clips that were timed: tokens and operations a second in what was computed, and the share of `product`."""
    from mmdit.training.meter import StepSize

    tokens, training = StepSize(network)((clips, 0, *grid))
    tokens_per_s, flops_per_s = (row.passes * amount / row.seconds for amount in (tokens, training / 3))
    return {"tokens_per_s": tokens_per_s, "flops_per_s": flops_per_s, "share": flops_per_s / product}


def _table(results: "list[Result]", rates: list[dict[str, float]]) -> list[str]:
    names = list(results[0].accuracy)
    head = f"{'way':40} {'steps':>5} {'calls':>5} {'passes':>6} {'seconds':>8} {'CPU s':>8}"
    head += f" {'tokens/s':>9} {'GFLOP/s':>8} {'share':>6}  {'PSNR dB':>15}"
    lines = [head + "".join(f"{name:>9}" for name in names)]
    for row, rate in zip(results, rates, strict=True):
        quality = "-" if row.psnr is None else f"{row.psnr:.1f}"
        quality += "" if row.psnr_plain is None else f" ({row.psnr_plain:.1f})"
        shares = "".join(f"{row.accuracy[name]:9.1%}" for name in names)
        counts = f"{row.steps:5} {row.calls:5} {row.passes:6.1f} {row.seconds:8.2f} {row.cpu_seconds:8.2f}"
        counts += f" {rate['tokens_per_s']:9.0f} {rate['flops_per_s'] / 1e9:8.1f} {rate['share']:6.1%}"
        lines.append(f"{row.name:40} {counts}  {quality:>15}{shares}")
    return lines


def _told(found: "Broadcast | None", wanted: bool) -> list[str]:
    if not wanted:
        return []
    if found is None:
        return ["attention broadcast: nothing keeps to the floor"]
    every = ", ".join(f"{kind} every {count}" for kind, count in found.every.items())
    return [f"attention broadcast: {every} steps, at timesteps {found.interval[0]:g} to {found.interval[1]:g}"]


def _as_json(found: "Broadcast | None") -> dict[str, Any] | None:
    return None if found is None else {"every": dict(found.every), "interval": list(found.interval)}
