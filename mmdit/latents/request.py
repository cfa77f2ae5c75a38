"""What an encoding run is asked for: which clips it cuts, how latents are kept, and how the work is done."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from mmdit.clips.buckets import Bucket, derive_buckets
from mmdit.clips.decode import ReaderName
from mmdit.clips.windows import Windows
from mmdit.errors import Refused
from mmdit.latents.codec import Codec

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class TokenBudget:
    """Buckets that are derived from the sources' shapes.

    Args:
        frames: the lengths of clips; for each there are buckets of its own. With 1 among them, images are taken too.
        tokens: how many a clip may have at most; a token is 2x2 places of a latent frame, as most networks take them.
        most: how many buckets there may be of each length.

    Raises:
        Refused: impossible numbers.
    """

    frames: tuple[int, ...]
    tokens: int
    most: int = 8

    def __post_init__(self) -> None:
        if not self.frames or min(*self.frames, self.tokens, self.most) < 1:
            raise Refused("an impossible budget of tokens", got=f"{self.tokens} for frames {self.frames}")

    def buckets(self, codec: Codec, sizes: Sequence[tuple[int, int]]) -> tuple[Bucket, ...]:
        """The buckets for sources of these sizes (height, width)."""
        unit = 2 * codec.space_factor
        buckets: list[Bucket] = []
        for frames in self.frames:
            latent_frames = codec.latent_size((frames, unit, unit))[0]
            pixels = self.tokens // latent_frames * unit**2
            buckets += derive_buckets(sizes, frames, pixels=pixels, unit=unit, most=self.most)
        return tuple(buckets)


@dataclass(frozen=True)
class ClipRules:
    """Which clips are cut from the sources.

    Args:
        buckets: the shapes of clips; each source goes into the one that suits it (`choose_bucket`).
        budget: in place of buckets, what they are derived by once the sources have been looked at.
        fps: frames a second of a clip. The speed stays true, but for `stride`.
        stride: take every so-many-th frame of the source, whatever its rate, in place of going by time.
        windows: how many clips a source gives.
        flip: each clip also mirrored left to right, as a clip of its own.
        reader: which library decodes.

    Raises:
        Refused: impossible numbers.
    """

    buckets: tuple[Bucket, ...]
    fps: float
    budget: TokenBudget | None = None
    stride: int | None = None
    windows: Windows = field(default_factory=Windows)
    flip: bool = False
    reader: ReaderName = "pyav"

    def __post_init__(self) -> None:
        if any(side < 1 for bucket in self.buckets for side in bucket) or bool(self.buckets) == bool(self.budget):
            raise Refused("an impossible clip", got=", ".join(map(str, self.buckets)) or "no bucket")
        if len(set(self.buckets)) < len(self.buckets):
            raise Refused("the same bucket twice", got=", ".join(map(str, self.buckets)))
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise Refused("the rate of frames is out of range", got=self.fps, expected="more than 0 a second")
        if self.stride is not None and self.stride < 1:
            raise Refused("the stride is out of range", got=self.stride, expected="1 or more frames")

    @property
    def needs_probe(self) -> bool:
        """Whether the sources have to be looked into before it is known what is cut from them."""
        return self.budget is not None or len(self.buckets) > 1 or self.windows.count != 1

    def settled(self, codec: Codec, sizes: Sequence[tuple[int, int]]) -> "ClipRules":
        """The same with buckets for sources of these sizes, where they are to be derived."""
        if self.budget is None:
            return self
        return replace(self, buckets=self.budget.buckets(codec, sizes), budget=None)


@dataclass(frozen=True)
class EncodeOptions:
    """How latents are kept, and how the work is done.

    Args:
        dtype: the type in which mean and deviation are stored: float16, bfloat16 or float32.
        batch_size: clips a call of the codec.
        shard_size: clips a shard; at most that many are encoded again after an interruption.
        workers: decoding processes; None: one less than there are processors, shared among the processes here.
        deadline: seconds that the decoding of one clip may take.
        max_skipped: clips that may be skipped, as a number (int) or as a share of all (float).
        psnr_every: the reconstruction PSNR is measured on one clip in so many, chosen by content; 0: on none.
        psnr_floor: in dB. A codec that is below it on the first clip is refused; a measured clip below it is skipped.
        retry_skipped: read the clips again that were skipped before.
    """

    dtype: str = "float16"
    batch_size: int = 16
    shard_size: int = 256
    workers: int | None = None
    deadline: float = 60.0
    max_skipped: int | float = 0.05
    psnr_every: int = 16
    psnr_floor: float | None = None
    retry_skipped: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise Refused("an unknown type for latents", got=repr(self.dtype), expected=f"one of {', '.join(DTYPES)}")
        if min(self.batch_size, self.shard_size) < 1:
            raise Refused("an empty batch or shard", got=min(self.batch_size, self.shard_size), expected="1 or more")
        if not self.deadline > 0:
            raise Refused("the deadline is out of range", got=self.deadline, expected="more than 0 seconds")


def latent_shapes(codec: Codec, rules: ClipRules) -> dict[Bucket, tuple[int, int, int, int]]:
    """The shape of a latent (channel, frame, height, width) of each bucket; Refused where the codec takes none."""
    return {bucket: (codec.channels, *codec.latent_size(bucket)) for bucket in rules.buckets}
