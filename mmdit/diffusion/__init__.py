"""The maths: pure functions of tensors and of a callable that predicts. Nothing here knows a network."""

from mmdit.diffusion.flow import RectifiedFlow, shift_for_tokens
from mmdit.diffusion.gaussian import GaussianDiffusion
from mmdit.diffusion.given import Given, guided_by_given
from mmdit.diffusion.guidance import Guidance, Projection, guided, two_passes
from mmdit.diffusion.samplers import SAMPLERS, make_scheduler, samplers_for
from mmdit.diffusion.sampling import draws_noise, sample

__all__ = [
    "SAMPLERS",
    "GaussianDiffusion",
    "Given",
    "Guidance",
    "Projection",
    "RectifiedFlow",
    "draws_noise",
    "guided",
    "guided_by_given",
    "make_scheduler",
    "sample",
    "samplers_for",
    "shift_for_tokens",
    "two_passes",
]
