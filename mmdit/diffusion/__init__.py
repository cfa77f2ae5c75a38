"""The maths: pure functions of tensors and of a callable that predicts. Nothing here knows a network."""

from mmdit.diffusion.flow import RectifiedFlow
from mmdit.diffusion.guidance import guided
from mmdit.diffusion.sampling import sample

__all__ = ["RectifiedFlow", "guided", "sample"]
