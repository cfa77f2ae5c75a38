"""What a pipeline gives back: clips as arrays, tensors, pictures or latents.

Shapes: N clips in all, C latent channels, (F, H, W) latent grid.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from diffusers.utils.outputs import BaseOutput
from PIL import Image
from torch import Tensor

from mmdit.clips.video import clip_to_frames

OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass
class ClipPipelineOutput(BaseOutput):
    """`frames`, by output type: "np" float32 (N, frame, height, width, 3) in [0, 1]; "pt" float32
    (N, 3, frame, height, width) in [-1, 1]; "pil" a list of N lists of images; "latent" float32 (N, C, F, H, W).
    """

    frames: Any


def as_output(made: Tensor, output_type: str) -> Any:
    """Clips (N, 3, frame, height, width) in [-1, 1], or latents, to what `ClipPipelineOutput` says."""
    if output_type in ("pt", "latent"):
        return made
    if output_type == "np":
        frames: np.ndarray = ((made + 1) / 2).permute(0, 2, 3, 4, 1).contiguous().numpy()
        return frames
    return [[Image.fromarray(frame) for frame in clip_to_frames(clip)] for clip in made]
