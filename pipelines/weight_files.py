"""Weights of other programs from disk: state files and diffusers folders, of which nothing but tensors is read."""

import json
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from mmdit import models
from mmdit.errors import Refused
from mmdit.models import DiT
from mmdit.models.convert import FORMATS, SPACING, State, recognise, sample_size_of
from mmdit.models.positions import Triple
from mmdit.training import lora

WEIGHTS = (".pt", ".pth", ".safetensors")
WRAPPERS = ("ema", "model")  # what training programs put a state dict into; averaged weights are the ones to use
DIFFUSERS_DIT = ("DiTTransformer2DModel", "Transformer2DModel")  # the second is its older name


class _Arguments:
    """What stands in for the arguments that a training program kept beside the weights."""


def load_folder(folder: Path, spacing: int = SPACING) -> DiT:
    """A folder of ours or of diffusers' class; of a whole pipeline, its transformer; of a LoRA run, with the LoRA.

    Raises:
        Refused: another network, or a damaged folder.
    """
    import diffusers

    if (folder / lora.FILE).is_file():
        return lora.load_network(folder)
    folder = folder / "transformer" if (folder / "transformer").is_dir() else folder
    if not (folder / "config.json").is_file():
        fix = "of a run, name a checkpoint: RUN/checkpoints/step-N" if (folder / "checkpoints").is_dir() else None
        raise Refused("this is no diffusers folder", where=folder, got="no config.json",
                      expected="a network's folder, or a pipeline's or a checkpoint's with transformer/ in it",
                      fix=fix)  # fmt: skip
    try:
        kind = json.loads((folder / "config.json").read_text("utf-8"))["_class_name"]
        if kind == "DiT":
            return models.DiT.from_pretrained(folder, use_safetensors=True)
        if kind == "LatteTransformer3DModel":
            raise Refused(
                "diffusers' Latte reads prompts in its space blocks alone, as mmdit's network cannot",
                where=folder, got=kind, expected="Latte's own file, with class labels or none",
            )  # fmt: skip
        if kind not in DIFFUSERS_DIT:
            raise Refused("no such network is known", where=folder, got=kind, expected="DiT or DiTTransformer2DModel")
        safe = any(folder.glob("*.safetensors"))  # of .bin files too diffusers reads tensors alone
        model = diffusers.DiTTransformer2DModel.from_pretrained(folder, use_safetensors=safe)
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


def load_state(
    state: State,
    kind: str | None = None,
    *,
    where: object = "the state",
    sample_size: Triple | None = None,
    heads: int | None = None,
    spacing: int = SPACING,
) -> tuple[DiT, str]:
    """The network of a state dict, and what it is: "dit", "latte" or "diffusers", `kind` or by its keys.

    Args:
        where: what a refusal calls the state.
        sample_size: (frames, height, width) of the latents; None for what its position tables tell.
        heads: None for those of the published sizes.
        spacing: of diffusers' weights, the timestep frequencies (`mmdit.models.from_diffusers`).

    Raises:
        Refused: an unknown network, a state that does not fit one, a size or heads that nobody told.
    """
    makers: dict[str, Any] = {"dit": models.from_dit, "latte": models.from_latte, "diffusers": models.from_diffusers}
    if kind not in (None, *FORMATS):
        raise Refused("unknown source", where="--from", got=repr(kind), expected=f"one of {', '.join(FORMATS)}")
    kind = kind or recognise(state)
    sample_size = sample_size or sample_size_of(state)
    if sample_size is None:
        raise Refused(
            "the file does not tell the size of the latents", where=where, fix="say sample_size (--sample-size 1x32x32)"
        )
    more = {"timestep_spacing": spacing} if kind == "diffusers" else {}
    return makers[kind](state, sample_size=sample_size, num_heads=heads, **more), kind


def read_state(path: Path) -> dict[str, Any]:
    """The tensors of a weights file; nothing in it is run. Refused for what is damaged, hostile or no state dict."""
    if not path.is_file() or path.suffix not in WEIGHTS:
        got = "no such file" if not path.exists() else f"a file that ends in {path.suffix!r}"
        raise Refused("these weights cannot be read", where=path, got=got, expected=", ".join(WEIGHTS))
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            # The original's training program keeps its arguments beside the weights, in a plain class.
            beside = (_Arguments, "argparse.Namespace")
            with torch.serialization.safe_globals([beside]), warnings.catch_warnings(action="ignore"):
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
    name, value = item
    if not isinstance(name, str) or not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        return False
    return value.device.type == "cpu" and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def _kind(content: Any) -> str:
    names = ", ".join(map(repr, list(content)[:4])) if isinstance(content, Mapping) else ""
    return f"{type(content).__name__} {names}".strip()


def _reason(error: Exception) -> str:
    """What a reader ran into: the code that a pickle asks for, or the first sentence of the message."""
    code = re.search(r"GLOBAL (\S+)", str(error))
    if code is not None:
        return f"code, {code[1]}"
    sentence = re.split(r"\.\s|\n", str(error).strip(), maxsplit=1)[0]
    return f"{type(error).__name__} {sentence[:200]}".strip()
