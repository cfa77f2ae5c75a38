"""Pictures and clips in the forms that users have them, as pixels (3, frame, height, width) in [-1, 1]."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from mmdit.clips.stills import as_rgb
from mmdit.clips.window import BadClip
from mmdit.errors import Refused

Pixels = Any  # PIL image, uint8 or [0, 1] array (height, width, 3), tensor (3, height, width) in [-1, 1]


def read_image(value: Pixels) -> Tensor:
    """One picture as pixels (3, 1, height, width); Refused for anything else."""
    if isinstance(value, Image.Image):
        try:
            value = as_rgb(ImageOps.exif_transpose(value))
        except BadClip as error:
            raise Refused("not a picture", got=error.reason) from None
    if isinstance(value, np.ndarray) and value.ndim == 3:
        return read_video(value[None])
    if isinstance(value, Tensor) and value.ndim == 3:
        return read_video(value[:, None])
    raise Refused(
        "not a picture", got=_told(value),
        expected="a PIL image, an array (height, width, 3), or a tensor (3, height, width) in [-1, 1]",
    )  # fmt: skip


def read_video(value: Any) -> Tensor:
    """A clip as pixels (3, frame, height, width); Refused for anything else."""
    if isinstance(value, list | tuple) and value:
        images = [read_image(image) for image in value]
        if len({image.shape for image in images}) == 1:
            return torch.cat(images, dim=1)
    if isinstance(value, np.ndarray) and value.ndim == 4 and value.shape[-1] == 3 and value.size:
        clip = torch.from_numpy(value.copy()).permute(3, 0, 1, 2)
        clip = clip / 127.5 - 1 if value.dtype == np.uint8 else clip.float() * 2 - 1
        return _in_range(clip, "[0, 1], or whole numbers of uint8")
    if isinstance(value, Tensor) and value.ndim == 4 and value.shape[0] == 3 and value.numel():
        return _in_range(value.detach().float().cpu(), "[-1, 1]")
    raise Refused(
        "not a clip", got=_told(value),
        expected="pictures of one size, an array (frame, height, width, 3), or a tensor (3, frame, height, width)",
    )  # fmt: skip


def _in_range(clip: Tensor, expected: str) -> Tensor:
    if not clip.isfinite().all() or clip.min() < -1.001 or clip.max() > 1.001:
        raise Refused("pixels out of range", got=f"{clip.min():g} to {clip.max():g} of [-1, 1]", expected=expected)
    return clip.clamp(-1, 1)


def _told(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return type(value).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")


def fit(clip: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels (3, frame, height, width) scaled until they cover `size` (height, width), and cut at the centre."""
    height, width = clip.shape[2:]
    scale = max(size[0] / height, size[1] / width)
    to = max(size[0], round(height * scale)), max(size[1], round(width * scale))
    if to != (height, width):
        frames = F.interpolate(clip.transpose(0, 1), size=to, mode="bicubic", antialias=True, align_corners=False)
        clip = frames.transpose(0, 1).clamp(-1, 1)
    top, left = (to[0] - size[0]) // 2, (to[1] - size[1]) // 2
    return clip[:, :, top : top + size[0], left : left + size[1]]
