"""The kinds of networks, and which of them a folder holds."""

import json
from pathlib import Path
from typing import Any

from mmdit.models.dit import DiT
from mmdit.models.unet import UNet

Network = DiT | UNet
NETWORKS: dict[str, type[Network]] = {"DiT": DiT, "UNet": UNet}


def read_network(folder: Path, **options: Any) -> Network:
    """The network that `save_pretrained` wrote, with the class that its config names; a DiT where it names none.

    Args:
        options: those of diffusers' `from_pretrained`.
    """
    try:
        named = json.loads((folder / "config.json").read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        named = "DiT"  # which says what is wrong with the folder
    network: Network = NETWORKS.get(str(named), DiT).from_pretrained(folder, use_safetensors=True, **options)
    return network
