"""How fast images are sampled: `ClipPipeline` beside diffusers' `DiTPipeline`, of the same weights, in turns."""

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from torch import nn

from mmdit.diffusion import GaussianDiffusion, make_scheduler
from mmdit.models import DiT, model_cost, to_diffusers
from mmdit.models.convert import SPACING
from mmdit.models.presets import preset_options
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.training.build import describe_process
from mmdit.training.model_speed import peak_over
from mmdit.training.precision import product_rates

LABELS = 1000  # the number that DiTPipeline takes for no label
PRESET = "DiT-XL/2"
TARGET = 2.5  # times as quick as DiTPipeline
GUIDANCE = 4.0
FEW = 3  # steps of a run that is not timed
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Row = dict[str, Any]


def sampling_rows(device: str, runs: int, *, tiny: bool) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
    """8 images in 250 steps of DDPM with guidance, by both pipelines in each precision; all of it in turns."""
    preset, size, steps, images = ("tiny", 8, 3, 2) if tiny else (PRESET, 32, 250, 8)
    for precision in DTYPES:
        name = f"{images} images of {preset} in {steps} steps, {precision}"
        yield name, partial(compare_pipelines, preset, size, steps, images, precision, device, runs, compiled=True)


def make_pair(preset: str, size: int, device: str) -> tuple[ClipPipeline, DiTPipeline]:
    """Ours and diffusers' pipeline with the same random network, for latents of size x size."""
    shape = {"sample_size": (1, size, size), "in_channels": 4, "out_channels": 8, "num_classes": LABELS}
    with torch.device(device):
        ours = DiT(**{**preset_options(preset), **shape}, timestep_spacing=SPACING).eval()
    generator = torch.Generator(device).manual_seed(0)
    for weight in ours.parameters():  # a new network says nothing but zeros
        weight.data.normal_(0, 0.02, generator=generator)
    state, config = to_diffusers(ours)
    with torch.device(device):
        theirs = DiTTransformer2DModel(**config).eval()
    theirs.load_state_dict(state)
    vae = AutoencoderKL(
        latent_channels=4, block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=2,
    ).eval()  # fmt: skip
    process = GaussianDiffusion()
    pipeline = ClipPipeline(
        ours, vae, make_scheduler("ddpm", process), label_names=[str(number) for number in range(LABELS)],
        clip={"frames": 1, "size": [8 * size] * 2, "fps": 1}, process=describe_process(process),
        null_conditions=["label"],
    )  # fmt: skip
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    peer = DiTPipeline(theirs, copy.deepcopy(vae), scheduler)
    for one in (pipeline, peer):
        one.set_progress_bar_config(disable=True)
        one.to(device)
    return pipeline, peer


@torch.no_grad()
def difference(pipeline: ClipPipeline, peer: DiTPipeline) -> float:
    """How far the two networks are apart on one input, relative to the largest value."""
    generator = torch.Generator().manual_seed(1)
    size = pipeline.transformer.config.sample_size
    x = torch.randn(2, 4, *size, generator=generator).to(pipeline.device)
    t, labels = (torch.tensor(values, device=x.device) for values in ([3, 700], [1, LABELS]))
    ours = pipeline.transformer(x, t, labels=labels)[:, :, 0]
    theirs = peer.transformer(x[:, :, 0], timestep=t, class_labels=labels).sample
    return float((ours - theirs).abs().max() / theirs.abs().max())


def compare_pipelines(
    preset: str, size: int, steps: int, images: int, precision: str, device: str, runs: int, *, compiled: bool
) -> list[Row]:
    """Both pipelines in turns, and ours compiled where asked for.

    Each row has seconds (a median), images_per_s, `times` as quick as diffusers', tokens_per_s (of the images, in all
    steps), flops_per_s of the network (a multiply-accumulate counts as two, guidance doubles), `share` of the rate of a
    large product here, and `memory`, most bytes over what stays; or an error.
    """
    pipeline, peer = make_pair(preset, size, device)
    apart = difference(pipeline, peer)
    for part in (peer.transformer, peer.vae):
        nn.Module.to(part, DTYPES[precision])  # diffusers' own `to` warns of what does not concern these networks
    calls = {
        f"diffusers DiTPipeline, {precision}": partial(_theirs, peer, images, device),
        f"mmdit, {precision}": partial(_ours, pipeline, images, precision),
    }
    if compiled:
        calls[f"mmdit, {precision}, compiled"] = partial(_ours, _compiled(pipeline), images, precision)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    errors: dict[str, str] = {}
    memory: dict[str, int] = {}
    for number in range(runs + 1):  # a first time, of few steps, is left out
        for name, call in calls.items():
            if name in errors:
                continue
            try:
                began = time.perf_counter()
                call(steps if number else FEW)  # ends on the CPU, so that nothing is under way
                spent[name] += [time.perf_counter() - began] * (number > 0)
                if number == runs:
                    memory[name] = peak_over(partial(call, FEW), device)
            except Exception as error:  # a compiler that is not there, or no memory: a line of the table
                errors[name] = (str(error).strip() or type(error).__name__).splitlines()[0]
    base = statistics.median(first) if (first := next(iter(spent.values()))) else None
    (product,) = product_rates(DTYPES[precision], device=device)
    network = pipeline.transformer.config
    tokens, flops = (steps * images * of_one for of_one in _of_an_image(network))
    rows = []
    for name, seconds in spent.items():
        row: Row = {"way": name, "networks_apart": apart}
        if name in errors:
            rows.append(row | {"error": errors[name]})
            continue
        median = statistics.median(seconds)
        row |= {"seconds": median, "images_per_s": images / median, "times": base / median if base else None}
        row |= {"tokens_per_s": tokens / median, "flops_per_s": flops / median, "share": flops / median / product}
        row |= {"product_flops_per_s": product, "memory": memory[name]}
        rows.append(row | {"target": TARGET if preset == PRESET and name.startswith("mmdit") else None})
    return rows


def _of_an_image(network: Any) -> tuple[int, int]:
    """Tokens, and operations of one call with guidance, which asks twice."""
    grid = tuple(network.sample_size)
    tokens = math.prod(n // p for n, p in zip(grid, network.patch_size, strict=True))
    return tokens, 2 * 2 * model_cost(network, grid).macs


def _compiled(pipeline: ClipPipeline) -> ClipPipeline:
    other = ClipPipeline(**pipeline.components | {"transformer": copy.deepcopy(pipeline.transformer)},
                         **_settings(pipeline))  # fmt: skip
    other.set_progress_bar_config(disable=True)
    other.enable_compile()
    return other


def _settings(pipeline: ClipPipeline) -> Row:
    return {name: pipeline.config[name] for name in ("label_names", "clip", "process", "null_conditions")}


def _ours(pipeline: ClipPipeline, images: int, precision: str, steps: int) -> None:
    labels = [str(number) for number in range(images)]
    pipeline(label=labels, num_inference_steps=steps, guidance_scale=GUIDANCE, batch_size=images, precision=precision)


def _theirs(peer: DiTPipeline, images: int, device: str, steps: int) -> None:
    generator = torch.Generator(device).manual_seed(0)
    peer(list(range(images)), guidance_scale=GUIDANCE, generator=generator, num_inference_steps=steps, output_type="np")
