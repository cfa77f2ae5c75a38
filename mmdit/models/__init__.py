"""The network."""

from mmdit.models.convert import from_diffusers, from_dit, from_latte, inflate, to_diffusers, to_dit
from mmdit.models.dit import DiT
from mmdit.models.macs import Cost, model_cost
from mmdit.models.presets import PRESETS, create_model

__all__ = [
    "PRESETS",
    "Cost",
    "DiT",
    "create_model",
    "from_diffusers",
    "from_dit",
    "from_latte",
    "inflate",
    "model_cost",
    "to_diffusers",
    "to_dit",
]
