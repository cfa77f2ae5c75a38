"""The network."""

from mmdit.models.dit import DiT
from mmdit.models.macs import Cost, model_cost
from mmdit.models.presets import PRESETS, create_model

__all__ = ["PRESETS", "Cost", "DiT", "create_model", "model_cost"]
