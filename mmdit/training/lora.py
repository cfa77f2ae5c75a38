"""LoRA: small matrices beside frozen ones are what is trained, through PEFT. Source: arXiv 2106.09685.

A checkpoint of such a run has, in place of weights:
    base/transformer/  base/text_encoder/  base/tokenizer/   what is frozen, once
    pytorch_lora_weights.safetensors                         the adapters as trained, in the form of diffusers' files
    ema/pytorch_lora_weights.safetensors                     their moving average
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mmdit import files
from mmdit.conditioning import load_text_encoder
from mmdit.errors import Refused
from mmdit.models import DiT, Network, read_network
from mmdit.training.model_config import LoraConfig
from mmdit.training.trainee import Trainee

FILE = "pytorch_lora_weights.safetensors"
BASE = "base"
NETWORK = "transformer."  # before the names of a network's weights, in a trainee and in diffusers' files
SUBLAYERS = ("attn", "time_attn", "cross_attn", "mlp")  # of a block, whose linears are the targets by default


def add_adapters(trainee: Trainee, config: LoraConfig) -> None:
    """Freezes the trainee and puts adapters beside its target matrices; they start as adding nothing.

    Their first values come from torch's own generator.

    Raises:
        Refused: PEFT is not installed, or no linear layer of the network is a target's.
    """
    _need_peft()
    from peft import LoraConfig as PeftConfig

    targets = find_targets(trainee.transformer, config.targets)
    trainee.requires_grad_(False)
    trainee.transformer.add_adapter(PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets))


def find_targets(network: DiT, targets: tuple[str, ...] | None) -> list[str]:
    """Names of the linear layers that get an adapter: those whose name is a target or ends in one after a dot.

    Args:
        targets: such as "qkv", "time_attn.proj" or "blocks.0.mlp.fc1"; None for all attention and MLP linears of the
            blocks.

    Raises:
        Refused: a target that no linear layer has; the nearest name is told.
    """
    linears = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    if targets is None:
        return [name for name in linears if name.startswith("blocks.") and name.split(".")[2] in SUBLAYERS]
    known = {".".join(name.split(".")[first:]) for name in linears for first in range(name.count(".") + 1)}
    for target in targets:
        if target not in known:
            (near,) = difflib.get_close_matches(target, sorted(known), n=1, cutoff=0.0)
            raise Refused(
                "no linear layer of the network has this name", where="lora.targets", got=repr(target),
                fix=f"did you mean {near}?",
            )  # fmt: skip
    return [name for name in linears if any(f".{name}".endswith(f".{target}") for target in targets)]


def base_state(network: DiT) -> dict[str, Tensor]:
    """The state dict of the network as it is without adapters; the tensors are the network's own."""
    return {_plain(name): value for name, value in network.state_dict().items() if ".lora_" not in name}


def write_weights(trainee: Trainee, folder: Path, *, base: bool) -> None:
    """Writes the adapters, and what is frozen too where `base` says so, into a folder that the caller is making."""
    from peft import get_peft_model_state_dict

    network = trainee.transformer
    adapters = {f"{NETWORK}{name}": value for name, value in get_peft_model_state_dict(network).items()}
    about = network.peft_config["default"].to_dict()
    # The same adapters shall be the same bytes: sets have no order, nor have several entries of a file's metadata.
    about = {f"{NETWORK}{key}": sorted(value) if isinstance(value, set) else value for key, value in about.items()}
    told = {"lora_adapter_metadata": json.dumps(about, sort_keys=True)}
    folder.mkdir(exist_ok=True)
    files.write_safetensors(folder / FILE, adapters, told)
    if base:
        with torch.device("meta"):
            plain = DiT.from_config(network.config)
        plain.load_state_dict(base_state(network), assign=True)
        plain.save_pretrained(folder / BASE / "transformer")
        if trainee.text_encoder is not None:
            trainee.text_encoder.save(folder / BASE)


def read_weights(trainee: Trainee, folder: Path) -> dict[str, Tensor]:
    """What `write_weights` wrote, as a state dict of the trainee: of the adapters alone, or whole."""
    # transformer.blocks.0.attn.qkv.lora_A.weight is there as ...lora_A.default.weight
    adapters = load_file(folder / FILE)
    weights = {f"{name.removesuffix('.weight')}.default.weight": value for name, value in adapters.items()}
    if (folder / BASE).is_dir():
        base = _load_plain(folder / BASE).state_dict()
        names = [name for name in trainee.transformer.state_dict() if ".lora_" not in name]
        weights |= {f"{NETWORK}{name}": base[_plain(name)] for name in names}
        if trainee.text_encoder is not None:
            frozen = load_text_encoder(folder / BASE).state_dict()
            weights |= {f"text_encoder.{name}": value for name, value in frozen.items()}
    return weights


def base_folder(folder: Path) -> Path:
    """Where the network and the text encoder lie whose weights `folder` (a checkpoint, or its ema/) has.

    The folder itself, but for a LoRA run: what is frozen there.
    """
    if not (folder / FILE).is_file():
        return folder
    return next((at / BASE for at in (folder, folder.parent) if (at / BASE).is_dir()), folder)


def load_network(folder: Path) -> Network:
    """The network of a checkpoint or its ema/, in eval mode; of a LoRA run, with the adapters merged into it.

    Raises:
        Refused: adapters, and PEFT is not installed.
    """
    network = _load_plain(base_folder(folder))
    if (folder / FILE).is_file():
        _need_peft()
        network.load_lora_adapter(str(folder), weight_name=FILE, local_files_only=True)
        network.fuse_lora()
        network.unload_lora()
    return network.eval()


def check_whole(base: DiT, network: DiT, left: dict[str, list[str]], where: Path) -> None:
    """Refused where the frozen network would not be the one that its weights come from.

    Args:
        left: names of weights that the source does not have as they are, by what became of them.
    """
    free = {"sample_size", "attention_backend", "num_classes"}
    for key in [key for key in base.config if not key.startswith("_") and key not in free]:
        was, now = (_tuples(config.get(key)) for config in (base.config, network.config))
        if was != now:
            raise Refused(
                "a LoRA changes nothing of the network that it is trained on", where=where,
                got=f"{key}={now}", expected=f"{key}={was}", fix="set it as that network was made",
            )  # fmt: skip
    for what, names in left.items():
        if names:
            raise Refused(
                "a LoRA needs all weights of the network that it is trained on", where=where,
                got=f"{len(names)} {what} ones, such as {names[0]}", fix="train all weights first, with lora=null",
            )  # fmt: skip


def _tuples(value: Any) -> Any:
    """Lists that were tuples before they were saved."""
    return tuple(value) if isinstance(value, list) else value


def _plain(name: str) -> str:
    return name.replace(".base_layer.", ".")


def _load_plain(folder: Path) -> Network:
    at = folder / "transformer" if (folder / "transformer").is_dir() else folder
    return read_network(at, local_files_only=True)


def _need_peft() -> None:
    if importlib.util.find_spec("peft") is None:
        raise Refused("LoRA needs PEFT, which is not installed", fix='pip install "mmdit-video[lora]"')
