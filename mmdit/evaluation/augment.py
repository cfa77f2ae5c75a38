"""What the probe sees while it learns: clips as a lossy codec would leave them, and clips that show nothing clearly.

Shapes: b batch, f frame, h height, w width, n names of one attribute. Clips are (b, 3, f, h, w), float32 in [-1, 1].
Every function draws from the generator it is given and from nothing else.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

Clips = Tensor

# What `spoil` does to a clip, each as often as it is named. frozen: one frame throughout, so nothing moves. shuffled:
# frames in random order. torn: patches in random places. washed: blurred past recognition. spliced: the second half is
# of another clip. empty: noise on a flat colour.
FAULTS = ("frozen", "frozen", "frozen", "shuffled", "shuffled", "torn", "washed", "spliced", "empty")


@dataclass
class Targets:
    """What the probe should say: probabilities (b, n) for each attribute, and whether to ask at all, (b,) of 0 or 1."""

    probabilities: dict[str, Tensor]
    asked: dict[str, Tensor]

    def loss(self, logits: dict[str, Tensor]) -> Tensor:
        """Cross-entropy, mean over the attributes that are asked."""
        total = torch.zeros(())
        for key, value in logits.items():
            each = -(self.probabilities[key] * value.float().log_softmax(-1)).sum(-1)  # (b,)
            total = total + (each * self.asked[key]).sum() / self.asked[key].sum().clamp(min=1)
        return total

    def make_unclear(self, row: int, keys: Iterable[str]) -> None:
        """The right answer for these attributes of one clip becomes: any name is as good as another."""
        for key in keys:
            self.probabilities[key][row] = 1 / self.probabilities[key].shape[1]

    def skip(self, row: int, keys: Iterable[str]) -> None:
        """Nothing is asked of one clip about these attributes."""
        for key in keys:
            self.asked[key][row] = 0

    def ask_only(self, row: int, *keys: str) -> None:
        """Of one clip only these attributes are asked, and they are unclear."""
        self.make_unclear(row, [key for key in keys if key in self.asked])
        self.skip(row, [key for key in self.asked if key not in keys])


def _uniform(low: float, high: float, g: Generator, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=g)


def _some(share: float, b: int, g: Generator) -> Tensor:
    """The rows of about `share` of a batch."""
    return torch.nonzero(torch.rand(b, generator=g) < share).flatten()


def _each(low: float, high: float, rows: Tensor, g: Generator) -> Tensor:
    """(rows, 1, 1, 1, 1): a strength for each row, uniform in [low, high]."""
    return _uniform(low, high, g, len(rows)).view(-1, 1, 1, 1, 1)


def _coarse(clips: Clips, height: int, width: int) -> Clips:
    """Down to (height, width) by areas and up again: what a codec keeps when it drops the finest detail."""
    b, _, f, h, w = clips.shape
    frames = clips.transpose(1, 2).flatten(0, 1)
    frames = F.interpolate(F.interpolate(frames, (height, width), mode="area"), (h, w), mode="bicubic")
    return frames.unflatten(0, (b, f)).transpose(1, 2)


def _time_blur(clips: Clips) -> Clips:
    """Each frame with a quarter of each neighbour, as a codec that halves the frame rate smears motion."""
    before = torch.cat([clips[:, :, :1], clips[:, :, :-1]], dim=2)
    after = torch.cat([clips[:, :, 1:], clips[:, :, -1:]], dim=2)
    return clips / 2 + (before + after) / 4


def _shift(clips: Clips, most: int, g: Generator) -> Clips:
    """The whole batch moved by up to `most` pixels each way, its edges repeated."""
    h, w = clips.shape[-2:]
    down, right = (int(v) for v in torch.randint(0, 2 * most + 1, (2,), generator=g))
    padded = F.pad(clips, (most, most, most, most, 0, 0), mode="replicate")
    return padded[..., down : down + h, right : right + w].clone()


def lossy(clips: Clips, g: Generator) -> Clips:
    """Clips as a codec or a generator may leave them: soft, smeared, noisy, slightly off in light; still legible."""
    b, _, f, h, w = clips.shape
    clips = _shift(clips, 3, g)
    rows = _some(0.6, b, g)
    keep = float(_uniform(0.6, 0.9, g))
    soft = _coarse(clips[rows], max(1, round(h * keep)), max(1, round(w * keep)))
    clips[rows] = clips[rows].lerp(soft, _each(0.3, 1.0, rows, g))
    rows = _some(0.4, b, g)
    clips[rows] = clips[rows].lerp(_time_blur(clips[rows]), _each(0.2, 1.0, rows, g))
    rows = _some(0.4, b, g)
    clips[rows] += torch.randn(len(rows), 3, f, h, w, generator=g) * _each(0.0, 0.12, rows, g)
    rows = _some(0.4, b, g)
    blobs = torch.randn(len(rows), 3, max(1, f // 4), 8, 6, generator=g) * _each(0.0, 0.06, rows, g)
    clips[rows] += F.interpolate(blobs, (f, h, w), mode="trilinear")
    rows = _some(0.5, b, g)
    clips[rows] = clips[rows] * (1 + _each(-0.1, 0.1, rows, g)) + _each(-0.08, 0.08, rows, g)
    return clips.clamp(-1, 1)


def spoil(clips: Clips, targets: Targets, motion: tuple[str, ...], share: float, g: Generator) -> Clips:
    """Makes about `share` of the clips illegible in one way each (see FAULTS), and the targets honest about it."""
    b, _, f, h, w = clips.shape
    still = tuple(key for key in targets.probabilities if key not in motion)
    source, known = clips.clone(), {key: value.clone() for key, value in targets.probabilities.items()}
    for row in _some(share, b, g).tolist():
        fault = FAULTS[int(torch.randint(0, len(FAULTS), (), generator=g))]
        if fault == "frozen":
            clips[row] = source[row, :, int(torch.randint(0, f, (), generator=g))].unsqueeze(1)
            targets.make_unclear(row, motion)
        elif fault == "shuffled":
            clips[row] = source[row][:, torch.randperm(f, generator=g)]
            targets.make_unclear(row, motion)
        elif fault == "torn":
            clips[row] = _torn(source[row], g)
            targets.ask_only(row, "garment")
        elif fault == "washed":
            coarse = int(torch.randint(3, 5, (), generator=g))
            clips[row] = _coarse(source[row : row + 1], coarse, coarse - 1)[0]
            targets.ask_only(row, "garment", "pattern")
        elif fault == "spliced":
            other, cut = (row + 1) % b, f // 2
            clips[row, :, cut:] = source[other, :, cut:]
            for key in still:
                targets.probabilities[key][row] = (known[key][row] + known[key][other]) / 2
            targets.make_unclear(row, motion)
        else:
            flat = _uniform(-1, 1, g, 3).view(3, 1, 1, 1)
            clips[row] = (flat + torch.randn(3, f, h, w, generator=g) * float(_uniform(0, 0.5, g))).clamp(-1, 1)
            targets.make_unclear(row, still + motion)
    return clips


def _torn(clip: Tensor, g: Generator, patch: int = 8) -> Tensor:
    """Square patches of a clip (3, f, h, w) in random places, the same in every frame."""
    _, f, h, w = clip.shape
    rows, cols = h // patch, w // patch
    pieces = clip[..., : rows * patch, : cols * patch].unflatten(-2, (rows, patch)).unflatten(-1, (cols, patch))
    pieces = pieces.permute(2, 4, 0, 1, 3, 5).flatten(0, 1)  # (rows cols, 3, f, patch, patch)
    pieces = pieces[torch.randperm(rows * cols, generator=g)].unflatten(0, (rows, cols)).permute(2, 3, 0, 4, 1, 5)
    torn = clip.clone()
    torn[..., : rows * patch, : cols * patch] = pieces.reshape(3, f, rows * patch, cols * patch)
    return torn
