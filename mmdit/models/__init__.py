"""The network."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmdit.models.convert import from_diffusers, from_dit, from_latte, inflate, to_diffusers, to_dit
    from mmdit.models.dit import DiT
    from mmdit.models.macs import Cost, model_cost
    from mmdit.models.networks import Network, read_network
    from mmdit.models.presets import PRESETS, create_model
    from mmdit.models.unet import UNet

__all__ = [
    "PRESETS",
    "Cost",
    "DiT",
    "Network",
    "UNet",
    "create_model",
    "from_diffusers",
    "from_dit",
    "from_latte",
    "inflate",
    "model_cost",
    "read_network",
    "to_diffusers",
    "to_dit",
]
# Imported when they are asked for: attention and its kernels need no diffusers.
_HOMES = {"PRESETS": "presets", "create_model": "presets", "Cost": "macs", "model_cost": "macs", "DiT": "dit",
          "Network": "networks", "read_network": "networks", "UNet": "unet"}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"mmdit.models.{_HOMES.get(name, 'convert')}"), name)
