"""Given frames for a pipeline: pictures, clips and latents of a user, as latent frames that sampling holds.

Shapes: N conditions, C latent channels, (F, H, W) latent grid; pixels (3, frame, height, width) in [-1, 1].
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mmdit.conditioning.frames import kinds_of
from mmdit.diffusion.given import Given
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.pipelines.pixels import fit, read_image, read_video
from mmdit.pipelines.windows import Windows, default_overlap, plan_overlap

log = logging.getLogger("mmdit")


@dataclass(frozen=True)
class GivenFrames:
    """What a user gives: of each one for all conditions, or a list of one a condition.

    Attributes:
        image, last_image: the first and the last frame: a PIL image, an array (height, width, 3) of uint8 or of floats
            in [0, 1], or a tensor (3, height, width) in [-1, 1]. Scaled until it covers the clip, cut at the centre.
        video: a clip to go on with: a list of such images, an array (frame, height, width, 3) or a tensor
            (3, frame, height, width). As much of its end is given as windows overlap by.
        latents: normalised latent frames by their number, {0: (C, H, W), -1: ...}; or a mask (F,) and latents
            (C, F, H, W), of which those at the mask are taken.
    """

    image: Any = None
    last_image: Any = None
    video: Any = None
    latents: Any = None

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) is not None for field in fields(self))


@dataclass(frozen=True)
class Held:
    """What one condition is given, not encoded yet: pixels (3, frame, height, width) by the name of their place, and
    latent frames (C, H, W) by number. `mask` (F,) says which latent frames these make."""

    mask: Tensor
    pixels: dict[str, Tensor]
    latents: dict[int, Tensor]


def plan_held(
    asked: GivenFrames,
    codec: Codec,
    patch: int,
    windows: Windows,
    *,
    conditions: int,
    overlap: int | None,
    trained: Sequence[str] | None,
    force: bool,
) -> list[Held] | None:
    """What each condition is given, nothing encoded yet; None for nothing at all.

    Args:
        windows: how the clips are made; what is asked for goes into the first window.
        overlap: the most latent frames of a clip that are given; None for a third of a window.
        trained: the kinds of given frames that the network knows, None where nobody said it.
        force: give them all the same.

    Raises:
        Refused: no picture or clip, not one a condition, of more places than there are, or of a kind that the network
            was not trained with.
    """
    if not asked:
        return None
    if asked.image is not None and asked.video is not None:
        raise Refused("a clip begins with one of them", got="an image and a video", fix="leave one out")
    if windows.count > 1 and (asked.last_image is not None or asked.latents is not None):
        raise Refused(
            "a last image and latents need one window", got=f"{windows.count} windows of {windows.length} frames",
            fix=f"ask for at most {windows.length} frames",
        )  # fmt: skip
    lists = {
        "image": _one_each(asked.image, conditions, "image"),
        "last_image": _one_each(asked.last_image, conditions, "last image"),
        "video": _one_each(asked.video, conditions, "video", clip=True),
        "latents": _one_each(asked.latents, conditions, "set of latents"),
    }
    size = windows.grid[1] * codec.space_factor, windows.grid[2] * codec.space_factor
    shape = (codec.channels, *windows.grid)
    known: dict[tuple[int, ...], Held] = {}
    held = []
    for row in range(conditions):
        parts = {name: values[row if len(values) > 1 else 0] for name, values in lists.items() if values}
        key = tuple(map(id, parts.values()))
        if key not in known:  # one picture for many prompts is looked at once
            known[key] = _plan_one(
                parts, codec, patch, windows, size, shape, overlap or default_overlap(windows.grid[0], patch)
            )
            _check_trained(known[key].mask, patch, trained, force)
        held.append(known[key])
    return held


def _plan_one(
    parts: dict[str, Any], codec: Codec, patch: int, windows: Windows, size: tuple[int, int],
    shape: tuple[int, ...], overlap: int,
) -> Held:  # fmt: skip
    count = shape[1]
    mask = torch.zeros(count, dtype=torch.bool)
    latents = _read_latents(parts["latents"], shape) if "latents" in parts else {}
    mask[list(latents)] = True
    pixels = dict[str, Tensor]()
    for name in ("image", "last_image"):
        if name in parts:
            pixels[name] = fit(read_image(parts[name]), size)
            mask[:patch] |= name == "image"
            mask[-patch:] |= name == "last_image"
    if "video" in parts:
        clip = read_video(parts["video"])
        most = (clip.shape[1] - 1) // codec.time_factor + 1
        given, frames = plan_overlap(codec, patch, windows.length, count, min(overlap, most))
        pixels["video"] = fit(clip[:, -frames:], size)
        mask[:given] = True
    if mask.all():
        raise Refused(
            "all frames are given, and none is left to make", got=f"{count} latent frames", fix="ask for more frames"
        )
    return Held(mask, pixels, latents)


def _one_each(value: Any, conditions: int, what: str, *, clip: bool = False) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list) or (clip and value and _is_image(value[0])):
        return [value]
    if len(value) not in (1, conditions):
        raise Refused(f"not one {what} a prompt or label", got=len(value), expected=f"1 or {conditions}")
    return value


def _is_image(value: Any) -> bool:
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) == 3


def _check_trained(mask: Tensor, patch: int, trained: Sequence[str] | None, force: bool) -> None:
    if force or set(kinds_of(mask, patch=patch)) & set(trained or ()):
        return
    told = "".join("x" if given else "." for given in mask)
    raise Refused(
        "this model was not trained with such given frames", got=f"latent frames {told} (x is given)",
        expected=" or ".join(trained) if trained else "none given",
        fix="train with conditions.given_frames, or insist with force_given (--force-given)",
    )  # fmt: skip


def check_guided(scale: float, *, given: bool) -> None:
    """Refused for an image guidance scale that is no number of 0 or more, or that has no frames to act on."""
    if not isinstance(scale, int | float) or not 0 <= scale < math.inf:
        raise Refused("the image guidance scale is out of range", got=repr(scale),
                      expected="a number of 0 or more (1 is without)")  # fmt: skip
    if scale != 1 and not given:
        raise Refused("image guidance without given frames", got=scale, fix="give an image, a clip or latents")


def encode_held(codec: Codec, held: Sequence[Held], windows: Windows, patch: int, device: torch.device) -> Given:
    """What a batch is given, encoded: one at a time, so that it does not depend on who else is there."""
    shape = (codec.channels, *windows.grid)
    done = {id(one): _encode_one(codec, one, shape, windows.length, patch) for one in held}
    latents = torch.stack([done[id(one)] for one in held])
    return Given(torch.stack([one.mask for one in held]).to(device), latents.to(device))


def _encode_one(codec: Codec, held: Held, shape: tuple[int, ...], length: int, patch: int) -> Tensor:
    latents = torch.zeros(shape)
    for number, latent in held.latents.items():
        latents[:, number] = latent
    for name, pixels in held.pixels.items():
        if name == "video":
            begin = codec.encode(pixels[None]).mean[0]
            latents[:, : begin.shape[1]] = begin
        elif patch == 1 and (codec.time_factor == 1 or name == "image") and codec.image_is_first_frame:
            latents[:, 0 if name == "image" else -1] = codec.encode(pixels[None]).mean[0, :, 0]
        else:
            log.warning("the %s is encoded as a clip that stands still", name.replace("_", " "))
            still = codec.encode(pixels.expand(-1, length, -1, -1)[None]).mean[0]
            where = slice(None, patch) if name == "image" else slice(-patch, None)
            latents[:, where] = still[:, where]
    return latents


def _read_latents(value: Any, shape: tuple[int, ...]) -> dict[int, Tensor]:
    channels, count, height, width = shape
    if not isinstance(value, Mapping):
        mask, latents = value if isinstance(value, tuple) and len(value) == 2 else (torch.empty(0), torch.empty(0))
        mask, latents = torch.as_tensor(mask), torch.as_tensor(latents)
        if mask.shape != (count,) or tuple(latents.shape) != shape:
            raise Refused(
                "not given latents", got=f"mask {tuple(mask.shape)}, latents {tuple(latents.shape)}",
                expected=f"{{number: ({channels}, {height}, {width})}}, or a mask ({count},) and latents {shape}",
            )  # fmt: skip
        value = {number: latents[:, number] for number in mask.bool().nonzero().flatten().tolist()}
    found = {}
    for number, latent in value.items():
        if isinstance(number, bool) or not isinstance(number, int) or not -count <= number < count:
            raise Refused("no such latent frame", got=number, expected=f"{-count} to {count - 1}")
        if tuple(torch.as_tensor(latent).shape) != (channels, height, width):
            raise Refused(
                "not a latent frame of this clip", where=f"frame {number}", got=tuple(torch.as_tensor(latent).shape),
                expected=(channels, height, width),
            )  # fmt: skip
        found[number % count] = torch.as_tensor(latent).float().cpu()
    return found
