"""`mmdit convert`: weights of the original DiT, Latte and diffusers' DiT into a network of mmdit, and back."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmdit.tools.cli import run

if TYPE_CHECKING:
    from mmdit.models import DiT

WEIGHTS = (".pt", ".pth", ".safetensors")
TARGETS = ("mmdit", "diffusers", "dit")
WRAPPERS = ("ema", "model")  # what training programs put a state dict into; averaged weights are the ones to use


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
) -> None:
    """Converts weights of the original DiT, Latte and diffusers' DiT, and back.

    From .pt and .pth files nothing but tensors is read: a file with code in it is refused. An inflated network starts
    as the image network on each frame.

    Example:
      mmdit convert DiT-XL-2-256x256.pt dit_xl
      mmdit convert DiT-XL-2-256x256.pt video_xl --inflate 16
    """
    from mmdit import models

    _check_target(out, to)
    model = _from_folder(source, spacing) if source.is_dir() else _from_file(source, from_, sample_size, heads, spacing)
    if inflate is not None:
        model = models.inflate(model, inflate)
    _write(model, out, to)
    size = "x".join(map(str, model.config.sample_size))
    weights = sum(weight.numel() for weight in model.parameters())
    print(f"converted: {out} ({to}, layout {model.config.layout}, latents {size}, {weights:,} weights)")


def _check_target(out: Path, to: str) -> None:
    """Refused before anything is read."""
    from mmdit.errors import Refused
    from mmdit.pipelines.output import check_writable

    if to not in TARGETS:
        raise Refused("unknown target", where="--to", got=repr(to), expected=f"one of {', '.join(TARGETS)}")
    if (to == "dit") != (out.suffix in WEIGHTS):
        kind = f"a file that ends in {', '.join(WEIGHTS)}" if to == "dit" else "the name of a folder"
        raise Refused(f"--to {to} does not write this", got=out, expected=kind)
    if out.exists():
        raise Refused("the output is there already", where=out, fix="name a new one")
    check_writable(out)


def _from_folder(folder: Path, spacing: int) -> "DiT":
    """A folder of ours or of diffusers' class; of a whole pipeline, its transformer; of a LoRA run, with the LoRA."""
    import json

    import diffusers

    from mmdit import models
    from mmdit.errors import Refused
    from mmdit.training import lora

    if (folder / lora.FILE).is_file():
        return lora.load_network(folder)
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["_class_name"]
        if kind == "DiT":
            return models.DiT.from_pretrained(folder, use_safetensors=True)
        if kind != "DiTTransformer2DModel":
            raise Refused("no such network is known", where=folder, got=kind, expected="DiT or DiTTransformer2DModel")
        model = diffusers.DiTTransformer2DModel.from_pretrained(folder, use_safetensors=True)
    except Refused:
        raise
    except Exception as error:  # whatever a damaged folder brings about in diffusers
        raise Refused("this is no diffusers folder", where=folder, got=_reason(error)) from None
    config = model.config
    if config.activation_fn != "gelu-approximate":
        raise Refused("another activation than the paper's", where=folder, got=config.activation_fn)
    return models.from_diffusers(
        model.state_dict(),
        sample_size=(1, config.sample_size, config.sample_size),
        num_heads=config.num_attention_heads,
        timestep_spacing=spacing,
    )


def _from_file(path: Path, source: str | None, sample_size: str | None, heads: int | None, spacing: int) -> "DiT":
    from mmdit import models
    from mmdit.errors import Refused
    from mmdit.models.convert import FORMATS, recognise, sample_size_of

    makers: dict[str, Any] = {"dit": models.from_dit, "latte": models.from_latte, "diffusers": models.from_diffusers}
    if source not in (None, *FORMATS):
        raise Refused("unknown source", where="--from", got=repr(source), expected=f"one of {', '.join(FORMATS)}")
    grid = _grid(sample_size) if sample_size else None
    state = _read(path)
    source = source or recognise(state)
    grid = grid or sample_size_of(state)
    if grid is None:
        raise Refused("the file does not tell the size of the latents", where=path, fix="say --sample-size 1x32x32")
    more = {"timestep_spacing": spacing} if source == "diffusers" else {}
    return makers[source](state, sample_size=grid, num_heads=heads, **more)


def _read(path: Path) -> dict[str, Any]:
    """The tensors of a weights file; nothing in it is run."""
    import argparse
    import warnings
    import zipfile

    import safetensors.torch
    import torch

    from mmdit.errors import Refused

    if not path.is_file() or path.suffix not in WEIGHTS:
        got = "no such file" if not path.exists() else f"a file that ends in {path.suffix!r}"
        raise Refused("these weights cannot be read", where=path, got=got, expected=", ".join(WEIGHTS))
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            # The original's training program keeps its arguments beside the weights, in this plain class.
            with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # whatever damaged or hostile bytes bring about in the readers
        raise Refused(
            "these weights cannot be read",
            where=path,
            got=_reason(error),
            expected="a whole file with nothing but tensors",
        ) from None
    for name in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content or not all(map(_is_weight, content.items())):
        raise Refused(
            "this file holds no state dict", where=path, got=_kind(content), expected="names with tensors of numbers"
        )
    return content


def _is_weight(item: tuple[Any, Any]) -> bool:
    """A name with a dense tensor; one that claims more numbers than it stores would fill the memory."""
    import torch

    name, value = item
    if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    return value.device.type == "cpu" and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _kind(content: Any) -> str:
    names = ", ".join(map(repr, list(content)[:4])) if isinstance(content, dict) else ""
    return f"{type(content).__name__} {names}".strip()


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


def _reason(error: Exception) -> str:
    """What a reader ran into: the code that a pickle asks for, or the first sentence of the message."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code is not None:
        return f"code, {code[1]}"
    sentence = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0]
    return f"{type(error).__name__} {sentence[:200]}".strip()


if __name__ == "__main__":
    run(main)
