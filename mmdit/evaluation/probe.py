"""The probe: a small 3D-convolution network that reads the attributes of a made fashion clip from its pixels.

Shapes: b batch, f frame, h height, w width, n names of one attribute.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmdit import files
from mmdit.config import Config, parse_config
from mmdit.errors import Refused

FORMAT = 1
UNCLEAR = "unclear"
EMBEDDED = Path(__file__).resolve().parents[1] / "assets" / "probe_fashion"
Reading = dict[str, list[str]]


class ProbeConfig(Config):
    """What makes a probe, beside its weights."""

    names: dict[str, tuple[str, ...]]
    """The names it knows for each attribute, in the order of its logits."""
    widths: tuple[int, ...] = (24, 48, 96, 128)
    """Channels after each stage; every stage but the last halves height and width, and the middle ones time."""
    size: tuple[int, int] = (64, 48)
    """(height, width) that clips are resampled to before reading."""
    motion: tuple[str, ...] = ("motion",)
    """The attributes that need several frames."""
    motion_frames: int = 9
    """How many frames they need at least."""
    clear: float = 0.6
    """A reading less probable than this is `UNCLEAR`."""
    subject: str = "garment"
    """The attribute that says whether there is anything to read: colour and pattern are its colour and pattern."""
    subject_clear: float = 0.5
    """Where no name of the subject is as probable as this, all attributes are `UNCLEAR`."""


class Probe(nn.Module):
    """Reads attributes from clips; each attribute has its own logits on one shared trunk."""

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        stages: list[nn.Module] = []
        width = 3
        for number, wider in enumerate(config.widths):
            last = number == len(config.widths) - 1
            stride = 1 if last else (1 if number == 0 else 2, 2, 2)
            stages += [nn.Conv3d(width, wider, 3, stride, 1, bias=False), nn.GroupNorm(8, wider), nn.SiLU()]
            width = wider
        self.trunk = nn.Sequential(*stages)
        self.heads = nn.ModuleDict({key: nn.Linear(2 * width, len(names)) for key, names in config.names.items()})

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Logits for each attribute.

        clips: (b, 3, f, h, w), float in [-1, 1], any size and any number of frames from 1.
        Returns attribute -> (b, n).
        """
        pooled = self.features(clips)
        return {key: head(pooled) for key, head in self.heads.items()}

    def features(self, clips: Tensor) -> Tensor:
        """What the heads read, (b, 2 width): mean and maximum of the trunk's features over all places."""
        b, _, f, h, w = clips.shape
        if (h, w) != self.config.size:
            frames = clips.transpose(1, 2).flatten(0, 1)  # (b f, 3, h, w)
            frames = F.interpolate(frames, self.config.size, mode="bilinear", antialias=True)
            clips = frames.unflatten(0, (b, f)).transpose(1, 2)
        features = self.trunk(clips).flatten(2).float()  # (b, width, places)
        return torch.cat([features.mean(-1), features.amax(-1)], dim=1)

    @torch.no_grad()
    def probabilities(self, clips: Tensor, *, batch_size: int = 32) -> dict[str, Tensor]:
        """Probabilities of every name: attribute -> (b, n) float32.

        clips: (b, 3, f, h, w), float in [-1, 1], or uint8. An attribute that needs several frames is uniform on a clip
        that is too short for it.
        """
        clips = _checked(clips)
        parameter = next(self.parameters())
        rows: dict[str, list[Tensor]] = {key: [] for key in self.config.names}
        for batch in clips.split(batch_size):
            logits = self(_unit_range(batch.to(parameter.device)).to(parameter.dtype))
            for key, value in logits.items():
                if key in self.config.motion and clips.shape[2] < self.config.motion_frames:
                    value = torch.zeros_like(value)
                rows[key].append(value.float().softmax(-1).cpu())
        return {key: torch.cat(value) for key, value in rows.items()}

    def read(self, clips: Tensor, *, batch_size: int = 32) -> Reading:
        """What the clips show: attribute -> a name a clip, or `UNCLEAR` where no name is probable enough.

        clips: (b, 3, f, h, w), float in [-1, 1], or uint8.
        """
        probabilities = self.probabilities(clips, batch_size=batch_size)
        there = [True] * len(clips)
        if self.config.subject in probabilities:
            there = (probabilities[self.config.subject].amax(-1) >= self.config.subject_clear).tolist()
        result: Reading = {}
        for key, values in probabilities.items():
            best, place = values.max(-1)
            names = self.config.names[key]
            # A clip with NaN in it fails the comparison, and so reads as unclear.
            result[key] = [
                names[i] if p >= self.config.clear and seen else UNCLEAR
                for i, p, seen in zip(place.tolist(), best.tolist(), there, strict=True)
            ]
        return result


def _checked(clips: Tensor) -> Tensor:
    if clips.ndim != 5 or clips.shape[1] != 3 or min(clips.shape) < 1:
        raise Refused(
            "these are not clips", got=f"shape {tuple(clips.shape)}", expected="(b, 3, frames, height, width)"
        )
    return clips


def _unit_range(clips: Tensor) -> Tensor:
    return clips.float() / 127.5 - 1 if clips.dtype == torch.uint8 else clips


def save_probe(probe: Probe, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Writes model.safetensors (weights in `dtype`) and config.json into `folder`."""
    folder = Path(folder)
    weights = {name: value.detach().to("cpu", dtype) for name, value in probe.state_dict().items()}
    files.write_safetensors(folder / "model.safetensors", weights)
    files.write_json(
        folder / "config.json", {"format": FORMAT, "class": "Probe", **probe.config.model_dump(mode="json")}
    )


def load_probe(path: str | Path | None = None) -> Probe:
    """The probe saved in folder `path`, in float32 and ready to read; without a path, the embedded one.

    Raises Refused when the folder holds no whole probe, or one of a newer format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = EMBEDDED if path is None else Path(path)
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        version = raw.pop("format")
        if version > FORMAT:
            raise Refused("a newer mmdit wrote this probe", where=folder, got=f"format {version}", expected=FORMAT)
        if (kind := raw.pop("class")) != "Probe":
            raise Refused("this is no probe", where=folder, got=kind, expected="Probe")
        probe = Probe(parse_config(ProbeConfig, raw, where=str(folder / "config.json")))
        weights = load_file(folder / "model.safetensors")
        probe.load_state_dict({name: value.float() for name, value in weights.items()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused(
            "no whole probe",
            where=folder,
            got=f"{type(error).__name__}: {error}",
            expected="config.json and model.safetensors",
            fix="train one with mmdit train-probe",
        ) from error
    return probe.eval().requires_grad_(False)


@torch.no_grad()
def colour_drift(probe: Probe, clips: Tensor, *, attribute: str = "colour", batch_size: int = 32) -> list[float]:
    """How far the colour that each single frame shows strays from the clip's: 0 = constant, 1 = another in every frame.

    Each frame is read as a still; the drift is the mean over frames of the total variation distance between the frame's
    probabilities and their mean over the clip. clips: (b, 3, f, h, w), float in [-1, 1], or uint8.
    """
    b, _, f, _, _ = _checked(clips).shape
    stills = clips.transpose(1, 2).flatten(0, 1).unsqueeze(2)  # (b f, 3, 1, h, w)
    shown = probe.probabilities(stills, batch_size=batch_size * f)[attribute].unflatten(0, (b, f))  # (b, f, n)
    return ((shown - shown.mean(1, keepdim=True)).abs().sum(-1) / 2).mean(1).tolist()
