"""The network."""

from mmdit.models.dit import DiT
from mmdit.models.presets import PRESETS, create_model

__all__ = ["PRESETS", "DiT", "create_model"]
