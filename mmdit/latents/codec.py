"""The codec: a video VAE of diffusers behind one interface, with its normalisation and its frame rule.

Pixels are in [-1, 1], clips and latents are (batch, channel, frame, height, width). The latents that come out are
normalised: about zero mean and unit deviation per channel, as a diffusion model wants them.
"""

import hashlib
import importlib.resources
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdit.errors import Refused

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


@dataclass(frozen=True)
class CodecSpec:
    """What a diffusers class needs said about it. `shift` and `scale` give latent = (raw - shift) / scale."""

    per_frame: bool
    space_factor: Callable[[Any], int]
    time_factor: Callable[[Any], int]
    shift: Callable[[Any], Any]
    scale: Callable[[Any], Any]
    decode_options: Callable[[Any, Tensor], dict[str, Any]] = lambda vae, latents: {}


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


# A class is supported by its row here; the tests run every promise over every row.
SPECS: dict[str, CodecSpec] = {
    # Each frame by itself. The normalisation as in diffusers' image pipelines.
    "AutoencoderKL": CodecSpec(
        per_frame=True,
        space_factor=lambda vae: 2 ** (len(vae.config.block_out_channels) - 1),
        time_factor=lambda vae: 1,
        shift=lambda vae: _or(vae.config.latents_mean, _or(vae.config.shift_factor, 0.0)),
        scale=lambda vae: torch.as_tensor(_or(vae.config.latents_std, 1.0)) / vae.config.scaling_factor,
    ),
    # The normalisation is in buffers; the newer weights decode at a noise level, of which 0 is the clean one.
    "AutoencoderKLLTXVideo": CodecSpec(
        per_frame=False,
        space_factor=lambda vae: vae.spatial_compression_ratio,
        time_factor=lambda vae: vae.temporal_compression_ratio,
        shift=lambda vae: vae.latents_mean,
        scale=lambda vae: vae.latents_std / vae.config.scaling_factor,
        decode_options=lambda vae, latents: (
            {"temb": latents.new_zeros(latents.shape[0])} if vae.config.timestep_conditioning else {}
        ),
    ),
}


class Codec:
    """A video VAE with everything that belongs to it.

    Args:
        vae: a model of one of the diffusers classes in `SPECS`.
        fingerprint: of `vae`, where it is known already (weights loaded in a narrower type have lost it).

    Raises:
        Refused: a class that is not in the table.
    """

    def __init__(self, vae: Any, *, fingerprint: str | None = None) -> None:
        name = type(vae).__name__
        if name not in SPECS:
            raise Refused("mmdit does not know this codec class", got=name, expected=f"one of {', '.join(SPECS)}")
        self.vae = vae
        self.spec = SPECS[name]
        self.channels: int = vae.config.latent_channels
        self.space_factor = self.spec.space_factor(vae)
        self.time_factor = self.spec.time_factor(vae)
        self._fingerprint = fingerprint

    @property
    def fingerprint(self) -> str:
        """sha256 over class, config and weight values: equal when the codec makes the same latents."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.vae)
        return self._fingerprint

    def nearest_frames(self, frames: int) -> int:
        """The largest number of frames up to `frames` that the codec takes (at least 1)."""
        return (max(1, frames) - 1) // self.time_factor * self.time_factor + 1

    def clip_frames(self, latent_frames: int) -> int:
        """The number of frames that a latent of so many frames decodes to."""
        return (latent_frames - 1) * self.time_factor + 1

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
            rule = "any number of frames" if self.time_factor == 1 else f"frames {self.time_factor}k + 1"
            raise Refused(
                "the codec cannot take this size of clip",
                got=_words(size),
                expected=f"{rule}, height and width multiples of {space}",
                fix=f"the nearest is {_words(nearest)}",
            )
        return (frames - 1) // self.time_factor + 1, height // space, width // space

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Posterior:
        """Clips (batch, 3, frame, height, width) in [-1, 1] to normalised latents.

        Raises:
            Refused: not five dimensions, not three channels, or a size that `latent_size` refuses.
        """
        if clips.ndim != 5 or clips.shape[1] != 3:
            raise Refused("not clips", got=tuple(clips.shape), expected="(batch, 3, frame, height, width)")
        frames, height, width = clips.shape[2:]
        self.latent_size((frames, height, width))
        raw = self.vae.encode(self._fold(clips.to(self.vae.device, self.vae.dtype))).latent_dist
        shift, scale = self._normalisation()
        mean, std = (self._unfold(part.float(), len(clips)) for part in (raw.mean, raw.std))
        return Posterior((mean - shift) / scale, std / scale)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (batch, channel, frame, height, width) to clips, float32, clamped to [-1, 1].

        Raises:
            Refused: not five dimensions, or not the codec's number of channels.
        """
        if latents.ndim != 5 or latents.shape[1] != self.channels:
            raise Refused(
                "not latents of this codec",
                got=tuple(latents.shape),
                expected=f"(batch, {self.channels}, frame, height, width)",
            )
        shift, scale = self._normalisation()
        raw = (latents.to(self.vae.device, torch.float32) * scale + shift).to(self.vae.dtype)
        raw = self._fold(raw)
        clips = self.vae.decode(raw, **self.spec.decode_options(self.vae, raw)).sample
        return self._unfold(clips.float(), len(latents)).clamp(-1, 1)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """Shift and scale, each (channel or 1, 1, 1, 1), float32."""
        parts = (self.spec.shift(self.vae), self.spec.scale(self.vae))
        shift, scale = (
            torch.as_tensor(part, dtype=torch.float32, device=self.vae.device).reshape(-1, 1, 1, 1) for part in parts
        )
        return shift, scale

    def _fold(self, clips: Tensor) -> Tensor:
        """(b, c, f, h, w) to (b f, c, h, w) for a codec of single frames."""
        return clips.transpose(1, 2).flatten(0, 1) if self.spec.per_frame else clips

    def _unfold(self, images: Tensor, batch: int) -> Tensor:
        """(b f, c, h, w) back to (b, c, f, h, w)."""
        return images.unflatten(0, (batch, -1)).transpose(1, 2) if self.spec.per_frame else images


def load_codec(
    name_or_folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Codec:
    """The codec of that name ("fashion" comes with mmdit), or the one in a folder or hub repository.

    A folder or repository is a diffusers model of one of the classes in `SPECS`, or a whole pipeline with one in `vae`.

    Raises:
        Refused: no such codec, or one of a class that mmdit does not know.
    """
    import diffusers

    source, options = _find(str(name_or_folder))
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
    try:
        # In float32 first, which holds what any file holds, so that the fingerprint does not depend on `dtype`.
        vae = getattr(diffusers, name).from_pretrained(source, torch_dtype=torch.float32, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise Refused("the codec's weights cannot be read", where=where, got=error) from None
    known = fingerprint(vae)
    # torch's own `to`: that of diffusers warns of modules to keep in float32, of which these classes have none.
    return Codec(torch.nn.Module.to(vae.eval(), device=device, dtype=dtype), fingerprint=known)


def fingerprint(vae: Any) -> str:
    """sha256 over class, config and weight values. Weights held in another type without loss give the same."""
    config = {key: value for key, value in dict(vae.config).items() if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps([type(vae).__name__, config], sort_keys=True, default=list).encode())
    for name, weight in sorted(vae.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def shipped_codecs() -> dict[str, Path]:
    """The codecs that come with mmdit: name to folder."""
    assets = Path(str(importlib.resources.files("mmdit"))) / "assets"
    return {folder.name.removeprefix("codec_"): folder for folder in sorted(assets.glob("codec_*"))}


def _find(name: str) -> tuple[str, dict[str, str]]:
    """Where diffusers is to load from: path or hub name, and the options to say so with."""
    shipped = shipped_codecs()
    if name in shipped:
        return str(shipped[name]), {}
    if Path(name).is_dir():
        inner = not (Path(name) / "config.json").is_file() and (Path(name) / "vae" / "config.json").is_file()
        return name, {"subfolder": "vae"} if inner else {}
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return name, {}
    raise Refused(
        "no such codec", got=name, expected=f"one of {', '.join(shipped)}, a folder, or a hub name such as owner/model"
    )


def _words(size: Size) -> str:
    return "{} frames of {}x{}".format(*size)
