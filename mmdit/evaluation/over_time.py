"""What happens from frame to frame: flicker, and how far a clip strays from its first frame. And the SSIM of a codec.

Shapes: b clips (b, 3, f, h, w); features of single frames (b, f, d).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.errors import Refused

FLICKER_FRAMES = 3


def flicker(clips: Tensor) -> Tensor:
    """How much each clip flickers: uint8 (b, 3, f, h, w) -> (b,), in levels of 255.

    The mean of |x[t-1] - 2 x[t] + x[t+1]| / 2: what goes and comes back counts, steady change does not. Raises Refused
    for fewer than three frames.
    """
    if clips.shape[2] < FLICKER_FRAMES:
        raise Refused("too few frames to flicker", got=clips.shape[2], expected=f"at least {FLICKER_FRAMES}")
    x = clips.float()
    back = (x[:, :, :-2] - 2 * x[:, :, 1:-1] + x[:, :, 2:]).abs() / 2
    return back.double().flatten(1).mean(1).float()


def drift(features: Tensor) -> Tensor:
    """How far each frame is from the clip's first one: features (b, f, d) -> (b, f - 1), 0 (alike) to 2.

    It is 1 - the cosine of the angle between their features.
    """
    first, later = features[:, :1].double(), features[:, 1:].double()
    return (1 - F.cosine_similarity(first, later, dim=-1)).float()


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each clip: (b, 3, f, h, w) twice, float in [-1, 1] -> (b,), at most 1.

    Of each channel of each frame, under a Gaussian window of 11 pixels and deviation 1.5, wherever the whole window
    lies inside (Wang et al. 2004, doi:10.1109/TIP.2003.819861), with K1 = 0.01 and K2 = 0.03. Raises Refused for frames
    smaller than the window.
    """
    if a.shape != b.shape or min(a.shape[-2:]) < 11:
        raise Refused("no structural similarity", got=f"{tuple(a.shape)} and {tuple(b.shape)}",
                      expected="one shape, frames of at least 11x11")  # fmt: skip
    x, y = (clips.double().transpose(1, 2).flatten(0, 2).unsqueeze(1) for clips in (a, b))  # (b f 3, 1, h, w)
    line = torch.exp(-((torch.arange(11, dtype=torch.float64, device=x.device) - 5) ** 2) / (2 * 1.5**2))
    line = line / line.sum()

    def blur(images: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(images, line.view(1, 1, 11, 1)), line.view(1, 1, 1, 11))

    mx, my = blur(x), blur(y)
    vx, vy, both = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # of a range of 2
    values = (2 * mx * my + c1) * (2 * both + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return values.flatten(1).mean(1).view(len(a), -1).mean(1).float()
