"""What training by a recipe would take: memory, time, disk. Nothing is trained, and nothing is written."""

from dataclasses import dataclass, replace
from typing import Any

import psutil
import torch

from mmdit.errors import Refused
from mmdit.models import model_cost
from mmdit.training.build import find_bottleneck
from mmdit.training.config import RunConfig
from mmdit.training.devices import DEVICES, Device, find_device
from mmdit.training.memory import DTYPES, StepInputs, StepMemory, trace_step
from mmdit.training.plan_data import Latent, PlanData, step_inputs
from mmdit.training.precision import product_rates, quick_precision

# Of a device's peak, where nobody has measured: published trainings of such networks reach 0.07 to 0.33.
ASSUMED_SHARE = 0.2
# A CPU's peak is measured on large products; training reached 0.5 to 0.8 of it.
ASSUMED_CPU_SHARE = 0.5
# Of a GPU's memory: the rest is for CUDA itself, for what kernels allocate for themselves, and for gaps.
USABLE = 0.9
LORA = "adapters are planned for as if every weight were trained: memory, time and checkpoints are less"


@dataclass(frozen=True)
class RunPlan:
    """Memory is in bytes and of one device; `flops_per_step` counts a multiply-accumulate as two and leaves out what
    activation checkpointing computes again, which `seconds` has in it."""

    parameters: int
    macs_per_clip: float
    flops_per_step: float
    precision: str
    clips_per_device: int
    micro_batch: int
    memory: dict[str, int]
    """weights, gradients, optimizer, averages, activations (left by the forward pass), peak (of a whole step)."""
    device: str
    devices: int
    device_memory: int
    fits: bool
    largest_micro_batch: int
    """0 where not even one clip fits."""
    advice: list[str]
    steps: int
    epochs: float | None
    seconds: float | None
    share_of_peak: float
    """Which `seconds` is computed with."""
    share_is: str
    checkpoint_bytes: int
    disk_bytes: int
    latents: dict[str, int]
    """Shape -> clips trained on."""
    clips: dict[str, int] | None
    notes: list[str]


def plan_run(
    config: RunConfig,
    data: PlanData,
    *,
    gpu: str | None = None,
    gpus: int = 1,
    share: float | None = None,
    text: tuple[int, int] | None = None,
) -> RunPlan:
    """Plans a run of this recipe.

    Args:
        gpu: name of a device; None for what this machine has.
        gpus: how many of them.
        share: of the device's peak, that the step reaches; None for an assumed one.
        text: width and tokens of a frozen text encoder; None to ask the encoder.

    Raises:
        Refused: an unknown device, a batch that does not divide over the devices, or a recipe that does not fit.
    """
    device, precision = _device(config, gpu)
    on_gpu, batch = device.name != "this CPU", config.data.batch_size
    if batch % gpus:
        raise Refused(
            "the batch does not divide over the devices", got=f"data.batch_size {batch} on {gpus}",
            expected="a multiple of their number",
        )  # fmt: skip
    inputs = step_inputs(config, data, data.largest, text)
    memory = trace_step(config, inputs, precision, on_gpu=on_gpu)
    clips, usable = batch // gpus, int(device.memory * (USABLE if on_gpu else 1.0))
    micro = min(clips, config.data.micro_batch or clips)
    peak = _peak(memory, clips, micro, gpus)
    largest = _largest(memory, clips, gpus, usable)
    advice = [] if peak <= usable else _advice(config, inputs, precision, on_gpu, clips, gpus, usable, largest)
    cost = step_cost(config, data, inputs)
    share_is = "given" if share is not None else "assumed"
    share = share or (ASSUMED_SHARE if on_gpu else ASSUMED_CPU_SHARE)
    one = memory.trained * 4 * (1 + len(_decays(config))) + memory.optimizer
    kept = config.keep_checkpoints + 1 + config.keep_best  # one more while the newest is written
    kept += config.steps // config.keep_every if config.keep_every else 0
    counted = data.clips is not None
    return RunPlan(
        parameters=memory.trained, macs_per_clip=cost.macs / cost.clips, flops_per_step=6 * cost.macs,
        precision=precision, clips_per_device=clips, micro_batch=micro,
        memory={
            "weights": memory.weights, "gradients": memory.gradients * (1 + (gpus > 1)), "optimizer": memory.optimizer,
            "averages": memory.averages, "activations": memory.activations(micro), "peak": peak,
        },
        device=device.name, devices=gpus, device_memory=device.memory, fits=peak <= usable,
        largest_micro_batch=largest, advice=advice, steps=config.steps,
        epochs=config.steps * cost.clips / sum(data.shapes.values()) if counted else None,
        seconds=run_seconds(config, cost, gpus * share * device.peak),
        share_of_peak=share, share_is=share_is, checkpoint_bytes=one, disk_bytes=one * kept,
        latents={"x".join(map(str, shape)): count for shape, count in data.shapes.items()}, clips=data.clips,
        notes=data.notes + _notes(config, inputs.of.latent_shape[0]),
    )  # fmt: skip


def _notes(config: RunConfig, channels: int) -> list[str]:
    bottleneck = find_bottleneck(config, channels)
    return [*([LORA] if config.lora else []), *([bottleneck] if bottleneck else [])]


def _device(config: RunConfig, gpu: str | None) -> tuple[Device, str]:
    """The device, with peak 0 where that is not known, and the precision of the products on it."""
    precision: str = config.precision
    if gpu is None and not torch.cuda.is_available():
        precision = quick_precision() if precision == "auto" else precision
        (peak,) = product_rates(DTYPES[precision])
        return Device("this CPU", peak, psutil.virtual_memory().total), precision
    precision = "bfloat16" if precision == "auto" else precision
    known = find_device(gpu or torch.cuda.get_device_name())
    if gpu is None:
        about = torch.cuda.get_device_properties()
        known = Device(about.name, known.peak if known else 0.0, about.total_memory)
    if known is None:
        names = ", ".join(device.name for device in DEVICES)
        raise Refused("unknown device", where="--gpu", got=gpu, expected=f"one of {names}")
    return (replace(known, peak=0.0) if precision == "float32" else known), precision


def _peak(memory: StepMemory, clips: int, micro: int, gpus: int) -> int:
    """Several processes hold the gradients a second time, in the buckets that they are exchanged in."""
    return memory.peak(clips, micro) + memory.gradients * (gpus > 1)


def _largest(memory: StepMemory, clips: int, gpus: int, usable: int) -> int:
    """The largest micro batch that fits, 0 for none."""
    fitting, too_large = 0, clips + 1
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        if _peak(memory, clips, middle, gpus) <= usable:
            fitting = middle
        else:
            too_large = middle
    return fitting


def _advice(
    config: RunConfig,
    inputs: StepInputs,
    precision: str,
    on_gpu: bool,
    clips: int,
    gpus: int,
    usable: int,
    largest: int,
) -> list[str]:
    """What to set so that it fits: the least that does."""
    if largest:
        return [f"data.micro_batch={largest}"]
    said: list[str] = []
    if config.model.checkpointing != 1 and config.model.network == "dit":
        said.append("model.checkpointing=1")
        model = config.model.model_copy(update={"checkpointing": 1})
        config = config.model_copy(update={"model": model})
        if largest := _largest(trace_step(config, inputs, precision, on_gpu=on_gpu), clips, gpus, usable):
            return said + ([f"data.micro_batch={largest}"] if largest < clips else [])
    if on_gpu and config.ema_device != "cpu":
        said.append("ema_device=cpu")
        config = config.model_copy(update={"ema_device": "cpu"})
        if largest := _largest(trace_step(config, inputs, precision, on_gpu=on_gpu), clips, gpus, usable):
            return said + ([f"data.micro_batch={largest}"] if largest < clips else [])
    return ["a smaller network, shorter or smaller clips, or a device with more memory"]


def _decays(config: RunConfig) -> tuple[float, ...]:
    return (config.ema_decay,) if isinstance(config.ema_decay, float) else config.ema_decay


@dataclass(frozen=True)
class StepCost:
    """`parameters`: of the network. In the mean step, `clips`, and `macs`: multiply-accumulates of a forward pass over
    them all."""

    parameters: int
    clips: float
    macs: float


def step_cost(config: RunConfig, data: PlanData, inputs: StepInputs) -> StepCost:
    """What a step of the recipe computes; from the shapes alone, within a second."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from mmdit.training.build import build_network

    with FakeTensorMode():
        network: Any = dict(build_network(config, inputs.of).config)
    tokens = inputs.text_tokens if network.get("text_token_dim") else 0
    images, macs, parameters = config.data.image_share, dict[Latent, float](), 0
    for shape in data.shapes:
        _, frames, height, width = shape
        clip = model_cost(network, (frames, height, width), text_tokens=tokens)
        image = model_cost(network, (1, height, width), text_tokens=tokens).macs if images else 0
        macs[shape], parameters = (1 - images) * clip.macs + images * image, clip.parameters
    batches = {shape: data.batches.get(shape, config.data.batch_size) for shape in data.shapes}
    steps = sum(samples / batches[shape] for shape, samples in data.shapes.items())
    a_step = sum(count * macs[shape] for shape, count in data.shapes.items()) / steps
    return StepCost(parameters, sum(data.shapes.values()) / steps, a_step)


def run_seconds(config: RunConfig, cost: StepCost, rate: float) -> float | None:
    """Of all steps, at `rate` operations a second of all devices together; None for a rate of 0."""
    again = 2 / config.model.checkpointing if config.model.checkpointing else 0
    return config.steps * cost.macs * (6 + again) / rate if rate else None
