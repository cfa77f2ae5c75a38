"""Pipelines of published weights, which sample as their authors did: the image DiT, diffusers' DiTPipeline, Latte."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch

from mmdit.diffusion import GaussianDiffusion, make_scheduler
from mmdit.errors import Refused
from mmdit.latents.codec import Codec, load_codec
from mmdit.models import DiT
from mmdit.models.convert import SPACING, State
from mmdit.models.positions import Triple
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.defaults import SamplingDefaults
from mmdit.pipelines.weight_files import load_folder, load_state, read_state
from mmdit.training.build import describe_process

SCALE = 0.18215  # what both programs multiply their VAE's latents by
DEFAULTS = {  # of the programs that came with the weights
    "dit": SamplingDefaults(steps=250, guidance=4.0, guidance_channels=3),
    "latte": SamplingDefaults(steps=250, guidance=7.0),
    "diffusers": SamplingDefaults(steps=50, guidance=4.0),
}
FPS = {"dit": 1, "latte": 8, "diffusers": 1}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


def from_dit(
    source: str | Path | State,
    vae: str | Path | None = None,
    *,
    labels: Sequence[str] | None = None,
    sample_size: Triple | None = None,
    num_heads: int | None = None,
    timestep_spacing: int = SPACING,
) -> ClipPipeline:
    """The published image DiT (2212.09748) as a pipeline of images, clips of one frame.

    Of the original's weights, it samples as the original does: 250 respaced steps with the learned variance, guidance
    of 4 on the first three channels. Of a saved `DiTPipeline`, as that class does: by the folder's scheduler, in 50
    steps, with guidance on all channels.

    Args:
        source: the original's file (.pt, .pth, .safetensors) or state dict, or the folder of a saved `DiTPipeline`.
        vae: folder or hub name of the VAE, such as "stabilityai/sd-vae-ft-mse"; None for the one in the folder.
        labels: names in the order of their numbers; None for those in the folder, or else the numbers.
        sample_size: (1, height, width) of the latents; None for what the position table tells.
        num_heads: None for those of the published sizes.
        timestep_spacing: of a folder, the steps that its timestep frequencies are spaced over: 127 as that class
            computes them, 128 as the weights were trained if they came from the original.

    Raises:
        Refused: weights that are no such network, a VAE that does not go with them, another number of labels.
    """
    if isinstance(source, str | Path) and Path(source).is_dir():
        return _from_folder(Path(source), vae, labels, timestep_spacing)
    return _from_state("dit", source, vae, labels, sample_size, num_heads)


def from_latte(
    source: str | Path | State,
    vae: str | Path,
    *,
    labels: Sequence[str] | None = None,
    sample_size: Triple | None = None,
    num_heads: int | None = None,
) -> ClipPipeline:
    """Latte (2401.03048), with class labels or none, as a pipeline that samples as the original does.

    That is in 250 respaced steps with the learned variance; with labels, by guidance of 7 on all channels. Arguments
    as for `from_dit`; `sample_size` is (frames, height, width).

    Raises:
        Refused: as `from_dit`; also for diffusers' `LattePipeline`, whose network reads prompts in a way of its own.
    """
    if isinstance(source, str | Path) and Path(source).is_dir():
        load_folder(Path(source))  # refuses diffusers' Latte, and says why
        raise Refused("this is no file of Latte's", where=source, got="a folder", expected="a .pt or .safetensors file")
    return _from_state("latte", source, vae, labels, sample_size, num_heads)


def _from_state(
    kind: str,
    source: str | Path | State,
    vae: str | Path | None,
    labels: Sequence[str] | None,
    sample_size: Triple | None,
    heads: int | None,
) -> ClipPipeline:
    where = "the state" if isinstance(source, Mapping) else source
    if vae is None:
        raise Refused("the file holds no VAE", where=where, fix="name its folder or hub name as vae (--vae)")
    state = source if isinstance(source, Mapping) else read_state(Path(source))
    network, _ = load_state(state, kind, where=where, sample_size=sample_size, heads=heads)
    process = GaussianDiffusion(variance=_variance(network, "fixed_large"))
    scheduler = make_scheduler("ddpm", process)
    return _assemble(kind, network, _load_vae(vae), scheduler, process, labels)


def _from_folder(
    folder: Path, vae: str | Path | None, labels: Sequence[str] | None, timestep_spacing: int
) -> ClipPipeline:
    """A saved DiTPipeline."""
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused("not a whole pipeline folder", where=folder, got=error, expected="a saved DiTPipeline") from None
    network = load_folder(folder, timestep_spacing)  # names what is wrong with other networks
    if kind != "DiTPipeline":
        raise Refused("a pipeline of another kind", where=folder, got=kind, expected="DiTPipeline")
    codec = load_codec(folder / "vae") if vae is None else _load_vae(vae)
    scheduler = _load_scheduler(folder, index)
    process = _process_of(scheduler.config, _variance(network, "fixed_small"), folder)
    return _assemble("diffusers", network, codec, scheduler, process, labels or _folder_labels(index, network))


def _assemble(
    kind: str, network: DiT, codec: Codec, scheduler: Any, process: GaussianDiffusion, labels: Sequence[str] | None
) -> ClipPipeline:
    config = network.config
    if codec.channels != config.in_channels:
        raise Refused(
            "the latents of the network and of the VAE disagree",
            got=f"a VAE of {codec.channels} channels",
            expected=f"{config.in_channels}",
            fix="name the VAE that the network was trained with",
        )
    count = config.num_classes
    if labels is not None and len(labels) != count:
        raise Refused("not one name a label", got=f"{len(labels)} names", expected=f"{count}")
    frames, height, width = config.sample_size
    size = [height * codec.space_factor, width * codec.space_factor]
    defaults = DEFAULTS[kind] if count else SamplingDefaults(DEFAULTS[kind].steps, guidance=1.0)
    return ClipPipeline(
        transformer=network.eval(),
        vae=codec.vae,
        scheduler=scheduler,
        label_names=(list(labels) if labels is not None else [str(number) for number in range(count)]) or None,
        clip={"frames": codec.clip_frames(frames), "size": size, "fps": FPS[kind]},
        process=describe_process(process),
        null_conditions=["label"] if count else None,  # both programs drop labels while they train
        sampling=asdict(defaults),
    )


def _load_vae(vae: str | Path) -> Codec:
    """The codec of that name; Refused for one with another normalisation than both programs have."""
    codec = load_codec(vae)
    shift, scale = (torch.as_tensor(value(codec.vae)).float() for value in (codec.spec.shift, codec.spec.scale))
    if not (shift == 0).all() or not torch.allclose(scale * SCALE, torch.ones_like(scale)):
        raise Refused(
            "this VAE scales its latents in another way than the published networks were trained with",
            where=vae,
            got=f"a factor of {1 / scale.mean():.5g}, a shift of {shift.mean():.5g}",
            expected=f"a factor of {SCALE} without a shift (scaling_factor in its config.json)",
        )
    return codec


def _load_scheduler(folder: Path, index: Mapping[str, Any]) -> Any:
    name = (index.get("scheduler") or ["", ""])[1]
    kind: Any = getattr(diffusers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        raise Refused(
            "no such scheduler is known", where=folder, got=name, expected="one of diffusers, as DDIMScheduler"
        )
    try:
        return kind.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    except (OSError, ValueError) as error:
        raise Refused("the scheduler cannot be read", where=folder / "scheduler", got=error) from None


def _process_of(config: Mapping[str, Any], variance: str, folder: Path) -> GaussianDiffusion:
    """What a network that this scheduler walks was trained for."""
    process = GaussianDiffusion(
        prediction=PREDICTIONS.get(config.get("prediction_type", "epsilon"), "unknown"),
        variance=variance,
        timesteps=config["num_train_timesteps"],
    )
    betas = config.get("beta_schedule"), config.get("beta_start"), config.get("beta_end")
    if betas != ("linear", *process.beta_range):
        expected = ("linear", *process.beta_range)
        raise Refused("the scheduler's betas are not those of the published DiT", where=folder / "scheduler",
                      got=betas, expected=expected)  # fmt: skip
    return process


def _variance(network: DiT, fixed: str) -> str:
    """The kind of variance: learned where the network gives twice the channels."""
    given, wanted = network.out_channels, network.config.in_channels
    if given not in (wanted, 2 * wanted):
        raise Refused("the network predicts neither noise alone nor a variance as well", got=f"{given} channels",
                      expected=f"{wanted} or {2 * wanted}")  # fmt: skip
    return "learned_range" if given == 2 * wanted else fixed


def _folder_labels(index: Mapping[str, Any], network: DiT) -> list[str] | None:
    """The first word of each of id2label; where two are alike, the number tells them apart."""
    said = index.get("id2label")
    if not said:
        return None
    first = {int(number): words.split(",")[0].strip() for number, words in said.items()}
    names = [first.get(number) or str(number) for number in range(network.config.num_classes)]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names)]
