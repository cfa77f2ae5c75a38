"""`mmdit convert`: weights of the original DiT, Latte and diffusers' DiT into a network of mmdit, and back."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.models import DiT

TARGETS = ("mmdit", "diffusers", "dit")


class _File(NamedTuple):
    """What the user says of the file, None for what it tells by itself: its kind, size of latents and heads."""

    kind: str | None
    sample_size: tuple[int, int, int] | None
    heads: int | None
    spacing: int


def main(
    source: Annotated[Path, typer.Argument(help="A .pt, .pth or .safetensors file, or a diffusers folder.")],
    out: Annotated[Path, typer.Argument(help="The new folder; with --to dit a .pt, .pth or .safetensors file.")],
    from_: Annotated[
        str | None, typer.Option("--from", help="What a file holds: dit, latte or diffusers. [default: by its keys]")
    ] = None,
    to: Annotated[str, typer.Option(help="mmdit, diffusers, or dit (for a Latte network, Latte's file).")] = "mmdit",
    sample_size: Annotated[
        str | None, typer.Option(help="FRAMESxHEIGHTxWIDTH of the latents. [default: as the file's tables tell]")
    ] = None,
    heads: Annotated[int | None, typer.Option(help="Attention heads. [default: as the published sizes]")] = None,
    inflate: Annotated[int | None, typer.Option(help="Make a video network for so many latent frames.")] = None,
    spacing: Annotated[
        int, typer.Option(help="Of diffusers' weights, the timestep frequencies: 128 if they came from the original.")
    ] = 127,
    vae: Annotated[
        str | None, typer.Option(help="A folder or hub name: write a whole pipeline with this VAE, to generate from.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="With --vae: a file with a label name a line, in their order. [default: the numbers]"),
    ] = None,
) -> None:
    """Converts weights of the original DiT, Latte and diffusers' DiT, and back.

    From .pt and .pth files nothing but tensors is read: a file with code in it is refused. An inflated network starts
    as the image network on each frame. A pipeline samples as the program that came with the weights does, or as the
    saved DiTPipeline that it is made of.

    Example:
      mmdit convert DiT-XL-2-256x256.pt dit_xl
      mmdit convert DiT-XL-2-256x256.pt video_xl --inflate 16
      mmdit convert DiT-XL-2-256x256.pt images --vae stabilityai/sd-vae-ft-mse
    """
    from mmdit import models
    from mmdit.errors import Refused

    _check_target(out, to)
    if vae is None and labels is not None:
        raise Refused("a network alone has no label names", got="--labels without --vae", fix="name the VAE")
    if vae is not None and (to != "mmdit" or inflate is not None):
        raise Refused(
            "only published weights make a pipeline", got="--vae with --to or --inflate", fix="use one of them"
        )
    file = _File(from_, _grid(sample_size) if sample_size else None, heads, spacing)
    if vae is not None:
        model = _write_pipeline(source, out, file, vae, labels)
    else:
        model = _read_network(source, file)
        if inflate is not None:
            model = models.inflate(model, inflate)
        _write(model, out, to)
    size = "x".join(map(str, model.config.sample_size))
    weights = sum(weight.numel() for weight in model.parameters())
    kind = to if vae is None else "a pipeline"
    print(f"converted: {out} ({kind}, layout {model.config.layout}, latents {size}, {weights:,} weights)")


def _check_target(out: Path, to: str) -> None:
    """Refused before anything is read."""
    from mmdit.errors import Refused
    from mmdit.pipelines.output import check_writable
    from mmdit.pipelines.weight_files import WEIGHTS

    if to not in TARGETS:
        raise Refused("unknown target", where="--to", got=repr(to), expected=f"one of {', '.join(TARGETS)}")
    if (to == "dit") != (out.suffix in WEIGHTS):
        kind = f"a file that ends in {', '.join(WEIGHTS)}" if to == "dit" else "the name of a folder"
        raise Refused(f"--to {to} does not write this", got=out, expected=kind)
    if out.exists():
        raise Refused("the output is there already", where=out, fix="name a new one")
    check_writable(out)


def _read_network(source: Path, file: _File) -> "DiT":
    from mmdit.pipelines.weight_files import load_folder, load_state, read_state

    if source.is_dir():
        return load_folder(source, file.spacing)
    state = read_state(source)
    network, _ = load_state(
        state, file.kind, where=source, sample_size=file.sample_size, heads=file.heads, spacing=file.spacing
    )
    return network


def _write_pipeline(source: Path, out: Path, file: _File, vae: str, labels: Path | None) -> "DiT":
    """The whole pipeline folder at `out`, or nothing; returns its network."""
    from mmdit.clips.sources.labels import read_classes
    from mmdit.errors import Refused
    from mmdit.models.convert import recognise
    from mmdit.pipelines import export, from_dit, from_latte
    from mmdit.pipelines.loading import Source
    from mmdit.pipelines.weight_files import read_state

    names = None
    if labels is not None and (names := read_classes(labels)) is None:
        raise Refused("no such file of label names", where=labels)
    if source.is_dir():
        pipeline = from_dit(source, vae, labels=names, timestep_spacing=file.spacing)
    else:
        state = read_state(source)
        kind = file.kind or recognise(state)
        makers = {"dit": from_dit, "latte": from_latte}
        if kind not in makers:
            raise Refused("no pipeline is made of such a file", where=source, got=kind, expected="dit or latte",
                          fix="name the folder of the saved DiTPipeline")  # fmt: skip
        pipeline = makers[kind](state, vae, labels=names, sample_size=file.sample_size, num_heads=file.heads)
    found = Source(source, pipeline.labels, False, pipeline.config.clip, {}, pipeline.process, None)
    export.write_folder(pipeline, found, out, "float32")
    network: DiT = pipeline.transformer
    return network


def _write(model: "DiT", out: Path, to: str) -> None:
    """The whole artefact at `out`, or nothing."""
    import diffusers
    import torch

    from mmdit import files, models

    if to == "dit":
        state = models.to_dit(model)
        if out.suffix == ".safetensors":
            files.write_safetensors(out, state)
        else:
            with files.new_file(out) as part:
                torch.save(state, part)
        return
    if to == "diffusers":
        state, config = models.to_diffusers(model)
        target = diffusers.DiTTransformer2DModel(**config)
        torch.nn.Module.to(target, next(model.parameters()).dtype).load_state_dict(state)
    with files.new_folder(out) as folder:
        (target if to == "diffusers" else model).save_pretrained(folder)


def _grid(text: str) -> tuple[int, int, int]:
    from mmdit.errors import Refused

    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})x([1-9]\d{0,4})", text.strip().lower(), re.ASCII)
    if found is None:
        raise Refused(
            "not a size", where="--sample-size", got=repr(text[:40]), expected="FRAMESxHEIGHTxWIDTH, as 1x32x32"
        )
    return int(found[1]), int(found[2]), int(found[3])


if __name__ == "__main__":
    run(main)
