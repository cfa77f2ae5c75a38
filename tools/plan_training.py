"""`mmdit plan RECIPE`: what `mmdit train` would take."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mmdit.training.plan import RunPlan


def main(
    config: Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to the recipe, as key.sub=value.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Device to plan for, such as h200. [default: this machine's]")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="How many of them train together.")] = 1,
    share: Annotated[
        float | None,
        typer.Option(min=0.001, max=1.0, help="Share of the device's peak that is reached. [default: an assumed one]"),
    ] = None,
    latent: Annotated[
        str | None, typer.Option(help="Without the store: CHANNELxFRAMExHEIGHTxWIDTH of a latent, as 4x16x32x32.")
    ] = None,
    labels: Annotated[int | None, typer.Option(min=1, help="Without the store: how many labels.")] = None,
    text: Annotated[
        str | None, typer.Option(help="WIDTHxTOKENS of a text encoder that is not on this machine, as 768x77.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON; bytes, seconds.")] = False,
) -> None:
    """Says what `mmdit train` with this recipe would take: memory, time and disk; nothing is trained or written.

    The memory is that of the real step, followed on tensors without data. It is of training without torch.compile,
    which takes less. With several devices, each holds the whole network (DDP).

    Example:
      mmdit plan configs/demo_fashion.yaml data.store=my_store
      mmdit plan dit_xl2_256 data.micro_batch=32 --gpu h200 --gpus 8 --latent 4x1x32x32 --labels 1000
    """
    import json
    from dataclasses import asdict
    from pathlib import Path

    from mmdit.config import load_config
    from mmdit.training.config import RunConfig
    from mmdit.training.plan import plan_run
    from mmdit.training.plan_data import data_as_told, data_of_store, where_of

    recipe = load_config(RunConfig, config, overrides or [])
    shape, sizes = _numbers("--latent", latent, 4), _numbers("--text", text, 2)
    there = all("://" in store or Path(store).exists() for store in where_of(recipe.data))
    # A store that is there goes before what is told, which a shape on the command line says is wanted instead.
    data = data_of_store(recipe) if there and shape is None else data_as_told(recipe, shape, labels)  # type: ignore[arg-type]
    plan = plan_run(recipe, data, gpu=gpu, gpus=gpus, share=share, text=sizes)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(asdict(plan)))
    else:
        print("\n".join(_lines(plan)))


def _numbers(option: str, text: str | None, count: int) -> tuple[int, ...] | None:
    from mmdit.errors import Refused

    if text is None:
        return None
    if not re.fullmatch("x".join([r"[1-9]\d{0,5}"] * count), text):
        raise Refused(f"{option} does not fit", got=repr(text), expected=f"{count} whole numbers joined by x")
    return tuple(map(int, text.split("x")))


def _lines(plan: "RunPlan") -> list[str]:
    m, made_of = plan.memory, "clips" if plan.clips else "as told"
    shapes = ", ".join(f"{shape}" + (f" ({count})" if plan.clips else "") for shape, count in plan.latents.items())
    lines = [
        f"network: {plan.parameters / 1e6:.2f} M parameters trained, {plan.macs_per_clip / 1e9:.4g} GMACs a clip",
        f"latents ({made_of}): {shapes}",
        f"step: {plan.clips_per_device * plan.devices} clips, {plan.clips_per_device} a device in parts of up to "
        f"{plan.micro_batch}, {plan.precision}, {plan.flops_per_step / 1e12:.4g} TFLOP",
        "memory of a device:",
        *(f"  {name:12} {_size(m[name])}" for name in ("weights", "gradients", "optimizer", "averages")),
        f"  {'activations':12} {_size(m['activations'])}, of {plan.micro_batch} clips",
        f"  {'peak':12} {_size(m['peak'])}: not all of these are there at one time, and passing results are",
    ]
    if plan.fits:
        lines.append(f"fits {plan.device} ({_size(plan.device_memory)}); largest data.micro_batch that does: "
                     f"{plan.largest_micro_batch} of {plan.clips_per_device}")  # fmt: skip
    else:
        lines.append(f"does NOT fit {plan.device} ({_size(plan.device_memory)}); set {' '.join(plan.advice)}")
    epochs = "" if plan.epochs is None else f", {plan.epochs:.4g} epochs"
    lines.append(f"steps: {plan.steps}{epochs}")
    devices = f"{plan.devices} x {plan.device}" if plan.devices > 1 else plan.device
    if plan.seconds is None:
        lines.append(f"time: not known: no peak of {plan.device} in {plan.precision}")
    else:
        lines.append(f"time: {_time(plan.seconds)} on {devices} at {plan.share_of_peak:.0%} of peak ({plan.share_is}"
                     f"{'; nobody has measured it' if plan.share_is == 'assumed' else ''})")  # fmt: skip
    lines.append(f"disk: {_size(plan.disk_bytes)} of checkpoints at most, {_size(plan.checkpoint_bytes)} each")
    if plan.clips is not None:
        lines.append("clips: " + ", ".join(f"{count} {name}" for name, count in plan.clips.items()))
    return lines + [f"note: {note}" for note in plan.notes]


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _time(seconds: float) -> str:
    for name, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.1f} {name}"
    return f"about {seconds:.0f} seconds"
