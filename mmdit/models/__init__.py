"""The network."""

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
