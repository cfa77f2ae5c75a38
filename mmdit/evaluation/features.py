"""Networks that turn clips into features to compare sets of clips by.

Shapes: b clips, uint8 (b, 3, f, h, w). A network of clips gives (b, d), one of single frames (b, f, d), float32 on the
CPU. What a clip's features are does not depend on the clips beside it: a network sees `at_once` clips or frames, in the
order of the set.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.errors import Refused
from mmdit.evaluation.probe import EMBEDDED, Probe, load_probe


class Features:
    """One network: `call` gives the features of one batch, `at_once` is how large that is at most.

    Raises:
        Refused: no whole network lies at `path`.
    """

    name: ClassVar[str]
    of_frames: ClassVar[bool] = False
    least_frames: ClassVar[int] = 1
    at_once: ClassVar[int] = 8

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.fingerprint = fingerprint_of(path)

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        """(b, d), or (b, f, d) of single frames. clips: uint8 (b, 3, f, h, w)."""
        b, _, f = clips.shape[:3]
        inputs = clips.transpose(1, 2).flatten(0, 1) if self.of_frames else clips
        rows = torch.cat([self.call(part.to(self.device)).float().cpu() for part in inputs.split(self.at_once)])
        return rows.unflatten(0, (b, f)) if self.of_frames else rows

    def call(self, clips: Tensor) -> Tensor:
        """Features of at most `at_once` clips (b, 3, f, h, w), or of frames (b, 3, h, w), uint8 on the device."""
        raise NotImplementedError


class ProbeFeatures(Features):
    """The embedded probe: mean and maximum over all places of what its trunk gives. It needs no download."""

    name = "probe"

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path, device)
        self.probe: Probe = load_probe(path).to(device)

    def call(self, clips: Tensor) -> Tensor:
        return self.probe.features(clips.float() / 127.5 - 1)


class ScriptFeatures(Features):
    """A TorchScript file; `options` are what the usual ones are called with."""

    options: ClassVar[Mapping[str, bool]] = {"return_features": True}

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path, device)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # newer torch says that TorchScript will go
                self.network: Any = torch.jit.load(str(path), map_location=device).eval()
        except (RuntimeError, ValueError) as error:
            raise Refused("no TorchScript file", where=path, got=str(error).splitlines()[0]) from None


class I3dFeatures(ScriptFeatures):
    """The I3D network of FVD, i3d_torchscript.pt (arXiv 1812.01717): 400 numbers a clip, before its softmax."""

    name = "i3d"
    least_frames = 10
    options: ClassVar[Mapping[str, bool]] = {"rescale": True, "resize": True, "return_features": True}

    def call(self, clips: Tensor) -> Tensor:
        result: Tensor = self.network(clips.float(), **self.options)  # it takes levels of 255
        return result


class InceptionFeatures(ScriptFeatures):
    """The Inception network of FID, inception-2015-12-05.pt: 2048 numbers a frame."""

    name = "inception"
    of_frames = True
    at_once = 16

    def call(self, clips: Tensor) -> Tensor:
        result: Tensor = self.network(clips, **self.options)  # it takes uint8 of any size
        return result


class ClipFeatures(Features):
    """A CLIP model of transformers, from its folder: its embedding of each frame."""

    name = "clip"
    of_frames = True
    at_once = 16

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path, device)
        from transformers import CLIPModel

        self.network = load_model(CLIPModel, path, device)
        self.prepare = pictures(path, self.network.config.vision_config.image_size, "CLIP")

    def call(self, clips: Tensor) -> Tensor:
        seen = self.network.vision_model(self.prepare(clips)).pooler_output
        result: Tensor = self.network.visual_projection(seen)
        return result


class VideoMaeFeatures(Features):
    """A VideoMAE model of transformers, from its folder: the mean of its tokens, of as many frames as it takes."""

    name = "videomae"
    at_once = 2

    def __init__(self, path: Path, device: torch.device) -> None:
        super().__init__(path, device)
        from transformers import VideoMAEModel

        self.network = load_model(VideoMAEModel, path, device)
        self.prepare = pictures(path, self.network.config.image_size, "ImageNet")

    def call(self, clips: Tensor) -> Tensor:
        """Of longer clips than it takes, frames are picked evenly."""
        wanted, (b, _, f) = self.network.config.num_frames, clips.shape[:3]
        picked = clips[:, :, torch.linspace(0, f - 1, wanted).round().long()]
        frames = self.prepare(picked.transpose(1, 2).flatten(0, 1)).unflatten(0, (b, wanted))  # (b, f, 3, h, w)
        result: Tensor = self.network(frames).last_hidden_state.mean(1)
        return result


NETWORKS: dict[str, type[Features]] = {
    kind.name: kind for kind in (ProbeFeatures, I3dFeatures, InceptionFeatures, ClipFeatures, VideoMaeFeatures)
}
MEANS = {"CLIP": (0.48145466, 0.4578275, 0.40821073), "ImageNet": (0.485, 0.456, 0.406)}
STDS = {"CLIP": (0.26862954, 0.26130258, 0.27577711), "ImageNet": (0.229, 0.224, 0.225)}


def find_network(name: str, path: Path | None) -> Path:
    """Where the weights of a network are; Refused, before anything is loaded, where there are none."""
    if name not in NETWORKS:
        raise Refused("unknown feature network", got=name, expected=f"one of {', '.join(NETWORKS)}")
    if path is None:
        if name == "probe":
            return EMBEDDED
        raise Refused("the weights of a feature network are not here", got=name, fix=f"say --network {name}=PATH")
    script = issubclass(NETWORKS[name], ScriptFeatures)
    if not (path.is_file() if script else (path / "config.json").is_file()):
        expected = "a TorchScript file" if script else "a folder with config.json"
        raise Refused("no feature network there", where=path, expected=expected)
    return path


def least_frames(name: str, path: Path) -> int:
    """How many frames of a clip a network needs, as its class or its config.json says."""
    if name != VideoMaeFeatures.name:
        return NETWORKS[name].least_frames
    try:
        return int(json.loads((path / "config.json").read_text(encoding="utf-8")).get("num_frames", 16))
    except (OSError, ValueError, AttributeError) as error:
        raise Refused("no whole model", where=path / "config.json", got=error) from None


def fingerprint_of(path: Path) -> str:
    """sha256 of a file, or of the names and bytes of the files in a folder."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(part for part in path.iterdir() if part.is_file()):
        with open(file, "rb") as handle:
            inner = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{file.name if path.is_dir() else ''} {inner}\n".encode())
    return digest.hexdigest()


def load_model(kind: Any, path: Path, device: torch.device) -> Any:
    """A model of transformers from a folder; Refused for one that is not whole."""
    from mmdit.conditioning.text import quiet

    try:
        with quiet():
            return kind.from_pretrained(str(path), local_files_only=True).eval().to(device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise Refused("no whole model", where=path, got=(str(error).splitlines() or ["?"])[0]) from None


def pictures(path: Path, size: int, kind: str) -> Callable[[Tensor], Tensor]:
    """Frames (n, 3, h, w), uint8, to what a model takes: scaled to cover a square, cut at the centre, normalised as its
    preprocessor_config.json says, or else as is usual for its `kind`."""
    try:
        says = json.loads((path / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        says = {}
    mean, std = (
        torch.tensor(says.get(name, usual[kind])).view(3, 1, 1)
        for name, usual in (("image_mean", MEANS), ("image_std", STDS))
    )

    def prepare(frames: Tensor) -> Tensor:
        h, w = frames.shape[-2:]
        scale = size / min(h, w)
        cover = max(size, round(h * scale)), max(size, round(w * scale))
        frames = F.interpolate(frames.float(), cover, mode="bicubic", antialias=True).clamp(0, 255)
        top, left = (cover[0] - size) // 2, (cover[1] - size) // 2
        frames = frames[..., top : top + size, left : left + size] / 255
        return (frames - mean.to(frames)) / std.to(frames)

    return prepare


class ClipScore:
    """How well the frames of each clip fit its caption: 100 max(cos, 0), mean over frames (arXiv 2104.08718).

    Args:
        clip: the model, which also gave the features of the frames.
    """

    def __init__(self, clip: ClipFeatures) -> None:
        from transformers import AutoTokenizer

        from mmdit.conditioning.text import quiet

        self.clip = clip
        try:
            with quiet():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(str(clip.path), local_files_only=True)
        except (OSError, ValueError) as error:
            raise Refused("no tokenizer there", where=clip.path, got=(str(error).splitlines() or ["?"])[0]) from None

    @torch.no_grad()
    def __call__(self, features: Tensor, captions: list[str]) -> Tensor:
        """(b,). features: of the frames (b, f, d); captions: one a clip."""
        rows = []
        for caption in captions:  # one at a time: padding then makes no difference
            tokens = self.tokenizer(caption, truncation=True, return_tensors="pt").to(self.clip.device)
            read = self.clip.network.text_model(**tokens).pooler_output
            rows.append(self.clip.network.text_projection(read).float().cpu())
        text = torch.cat(rows).unsqueeze(1)  # (b, 1, d)
        return 100 * F.cosine_similarity(features, text, dim=-1).clamp(min=0).mean(1)
