"""The codec: a video VAE of diffusers behind one interface, with its normalisation and its frame rule.

Pixels are in [-1, 1], clips and latents are (batch, channel, frame, height, width). The latents that come out are
normalised: about zero mean and unit deviation per channel, as a diffusion model wants them.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import Refused
from mmdit.latents.codec_files import find_codec, fingerprint
from mmdit.latents.codec_specs import SPECS, TILE_OVERLAP, tile_side

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Posterior:
    """What the encoder says of a clip: a normal distribution over normalised latents.

    Attributes:
        mean: (batch, channel, frame, height, width), float32.
        std: the same shape, float32; zero where the codec has no distribution.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """One draw: z = mean + std noise. `noise` is standard normal, of the shape of `mean`."""
        return self.mean + self.std * noise.to(self.mean)


class Codec:
    """A video VAE with everything that belongs to it.

    Args:
        vae: a model of one of the diffusers classes in `SPECS`. From now on its tiling is what the codec says.
        fingerprint: of `vae`, where it is known already (weights loaded in a narrower type have lost it).
        tiling: whether pictures larger than a tile are worked on in tiles that overlap by a quarter, for less memory;
            a number is the side of a tile in pixels, True the class's own.

    Raises:
        Refused: a class that is not in the table, one that cannot tile, or a side that does not fit its latents.
    """

    def __init__(self, vae: Any, *, fingerprint: str | None = None, tiling: bool | int = False) -> None:
        name = type(vae).__name__
        if name not in SPECS:
            raise Refused("mmdit does not know this codec class", got=name, expected=f"one of {', '.join(SPECS)}")
        self.vae = vae
        self.spec = SPECS[name]
        self.channels: int = self.spec.channels(vae)
        self.space_factor = self.spec.space_factor(vae)
        self.time_factor = self.spec.time_factor(vae)
        self.frame_step = self.spec.frame_step(vae)
        self.tile = tile_side(vae, tiling)  # in pixels, or None
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """sha256 over class, config and weight values: equal when the codec makes the same latents, tiling aside."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.vae)
        return self._fingerprint

    @property
    def device(self) -> torch.device:
        """Where it computes; a model that is offloaded lies elsewhere until it is called."""
        for module in self.vae.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
        return torch.device(self.vae.device)

    @property
    def precision(self) -> str:
        """The type that it computes in, such as "float32"; latents depend on it, so stores record it."""
        return str(self.vae.dtype).removeprefix("torch.")

    @property
    def tiling(self) -> dict[str, int] | None:
        """Side and overlap of a tile in pixels, or None; latents depend on it, so stores record it."""
        return None if self.tile is None else {"size": self.tile, "overlap": int(self.tile * TILE_OVERLAP)}

    @property
    def image_is_first_frame(self) -> bool:
        """Whether a lone image has the latent of the first frame of a clip that begins with it.

        Where it has not, images and clips are two kinds of latents, and one network learns both only as such.
        """
        return bool(self.spec.image_is_first_frame(self.vae))

    def untiled(self) -> "Codec":
        """The same codec without tiling, over the same weights."""
        return Codec(self.vae, fingerprint=self._fingerprint)

    def nearest_frames(self, frames: int) -> int:
        """The largest number of frames up to `frames` that the codec takes (at least 1)."""
        step = self.frame_step
        nearest = (max(1, frames) - 1) // step * step + 1
        return max(nearest, frames // step * step) if self.spec.whole_steps else nearest

    def clip_frames(self, latent_frames: int) -> int:
        """The number of frames that a latent of so many frames decodes to."""
        return self.nearest_frames(latent_frames * self.time_factor)

    def _latent_frames(self, frames: int) -> int:
        return (frames - 1) // self.time_factor + 1

    def latent_size(self, size: Size) -> Size:
        """The latent grid (frames, height, width) of a clip of the size (frames, height, width).

        Raises:
            Refused: a size that the codec cannot give back exactly; the nearest possible one is named.
        """
        frames, height, width = size
        space = self.space_factor
        height_near, width_near = (max(space, round(side / space) * space) for side in (height, width))
        nearest = (self.nearest_frames(frames), height_near, width_near)
        if nearest != (frames, height, width):
            step = self.frame_step
            rule = (
                f"frames {step}k + 1" + f" or {step}k" * self.spec.whole_steps if step > 1 else "any number of frames"
            )
            raise Refused(
                "the codec cannot take this size of clip",
                got=_words(size),
                expected=f"{rule}, height and width multiples of {space}",
                fix=f"the nearest is {_words(nearest)}",
            )
        return self._latent_frames(frames), height // space, width // space

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Posterior:
        """Clips (batch, 3, frame, height, width) in [-1, 1] to normalised latents.

        Raises:
            Refused: not five dimensions, not three channels, or a size that `latent_size` refuses.
        """
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise Refused("not clips", got=tuple(clips.shape), expected="(batch, 3, frame, height, width)")
        frames, height, width = clips.shape[2:]
        grid = self.latent_size((frames, height, width))
        self._set_tiling()
        raw = self.spec.moments(self.vae.encode(self._fold(clips.to(self.device, self.vae.dtype))))
        mean, std = (self._unfold(part.float(), len(clips)) for part in raw)
        self._check_config(mean, grid)
        shift, scale = self._normalisation()
        return Posterior((mean - shift) / scale, std / scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (batch, channel, frame, height, width) to clips, float32, clamped to [-1, 1].

        Equal latents give equal clips; a decoder that draws noise draws the same at each call.

        Raises:
            Refused: not five dimensions, not the codec's number of channels, or frames that no clip is encoded to.
        """
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise Refused(
                "not latents of this codec",
                got=tuple(latents.shape),
                expected=f"(batch, {self.channels}, frame, height, width)",
            )
        count, height, width = latents.shape[2:]
        frames = self.clip_frames(count)
        if (near := self._latent_frames(frames)) != count:
            raise Refused("no clip has so many latent frames", got=count, expected=f"such as {near} ({frames} frames)")
        self._set_tiling()
        shift, scale = self._normalisation()
        raw = (latents.to(self.device, torch.float32) * scale + shift).to(self.vae.dtype)
        with _same_noise(self.device) if self.spec.draws_noise(self.vae) else nullcontext():
            clips = self.vae.decode(self._fold(raw), **self.spec.decode_options(self.vae, raw)).sample
        clips = self._unfold(clips.float(), len(latents)).clamp(-1, 1)
        self._check_config(clips, (frames, height * self.space_factor, width * self.space_factor))
        return clips

    def _set_tiling(self) -> None:
        if self.spec.tile is not None:
            if self.tile is not None:
                self.spec.tile(self.vae, self.tile)
            else:
                self.vae.disable_tiling()

    def _check_config(self, result: Tensor, size: Size) -> None:
        """Some classes drop frames, or believe factors that the config only claims, without a word."""
        frames, height, width = result.shape[2:]
        if (frames, height, width) != size:
            raise Refused(
                "the codec's config does not fit its network", where=type(self.vae).__name__,
                got=_words((frames, height, width)), expected=f"{_words(size)} by the config's factors",
            )  # fmt: skip

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, each (channel or 1, 1, 1, 1), float32."""
        parts = (self.spec.shift(self.vae), self.spec.scale(self.vae))
        shift, scale = (
            torch.as_tensor(part, dtype=torch.float32, device=self.device).reshape(-1, 1, 1, 1) for part in parts
        )
        return shift, scale

    def _fold(self, clips: Tensor) -> Tensor:
        """(b, c, f, h, w) to (b f, c, h, w) for a codec of single frames."""
        return clips.transpose(1, 2).flatten(0, 1) if self.spec.per_frame else clips

    def _unfold(self, images: Tensor, batch: int) -> Tensor:
        """(b f, c, h, w) back to (b, c, f, h, w)."""
        return images.unflatten(0, (batch, -1)).transpose(1, 2) if self.spec.per_frame else images


def load_codec(
    name_or_folder: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    tiling: bool | int = False,
) -> Codec:
    """The codec of that name ("fashion" comes with mmdit), or the one in a folder or hub repository.

    A folder or repository is a diffusers model of one of the classes in `SPECS`, or a whole pipeline with one in `vae`.
    `tiling` is that of `Codec`. On device "meta" no weights are loaded: such a codec knows sizes, and encodes nothing.

    Raises:
        Refused: no such codec, one of a class that mmdit does not know, or tiling that it cannot do.
    """
    import diffusers

    source, options = find_codec(str(name_or_folder))
    where = f"{name_or_folder}"
    try:
        config = diffusers.AutoencoderKL.load_config(source, **options)
    except (OSError, ValueError) as error:
        raise Refused("the codec's config.json cannot be read", where=where, got=error) from None
    name = config.get("_class_name", "no class")
    if name not in SPECS:
        raise Refused(
            "mmdit does not know this codec class", where=where, got=name, expected=f"one of {', '.join(SPECS)}"
        )
    if str(device) == "meta":
        with torch.device("meta"):
            return Codec(getattr(diffusers, name).from_config(config), fingerprint="none", tiling=tiling)
    try:
        # In float32 first, which holds what any file holds, so that the fingerprint does not depend on `dtype`.
        vae = getattr(diffusers, name).from_pretrained(source, torch_dtype=torch.float32, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused("the codec's weights cannot be read", where=where, got=error) from None
    known = fingerprint(vae)
    # torch's own `to`: that of diffusers warns of modules to keep in float32, of which these classes have none.
    return Codec(torch.nn.Module.to(vae.eval(), device=device, dtype=dtype), fingerprint=known, tiling=tiling)


@contextmanager
def _same_noise(device: torch.device) -> Iterator[None]:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield


def _words(size: Size) -> str:
    return "{} frames of {}x{}".format(*size)
