"""Stand-ins for the two slow parts of encoding: the codec, and the processes that read clips."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from mmdit.clips.decode import BadClip, Decoded, ReadRequest, read_request
from mmdit.clips.probe import Probed, ProbeRequest, probe
from mmdit.errors import Refused
from mmdit.latents.codec import Posterior


class Pooled:
    """Stands for a codec: averages over 8x8 pixels; its deviation is half the mean's size."""

    channels, space_factor, time_factor, tiling, tile, vae = 3, 8, 1, None, None, None
    precision = "float32"

    def __init__(self, fingerprint: str = "pooled", *, pause: float = 0.0) -> None:
        self.fingerprint = fingerprint
        self.pause = pause
        self.clips = 0

    def nearest_frames(self, frames: int) -> int:
        return frames

    def untiled(self) -> "Pooled":
        return self

    def latent_size(self, size: tuple[int, int, int]) -> tuple[int, int, int]:
        if size[1] % 8 or size[2] % 8:
            raise Refused("the codec cannot take this size of clip", got=size, fix="the nearest is 64x48")
        return size[0], size[1] // 8, size[2] // 8

    def encode(self, clips: torch.Tensor) -> Posterior:
        time.sleep(self.pause)
        self.clips += len(clips)
        mean = F.avg_pool3d(clips, (1, 8, 8))
        return Posterior(mean, mean.abs() / 2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        return F.interpolate(latents, scale_factor=(1.0, 8.0, 8.0))


class Direct:
    """Stands for the ClipReader: reads in this process, which spares the tests the start of another."""

    def __init__(self, workers: int, **_: Any) -> None: ...

    def __enter__(self) -> "Direct":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def read_many(self, requests: Iterable[ReadRequest | ProbeRequest]) -> Iterator[Decoded | Probed | BadClip]:
        for request in requests:
            try:
                yield probe(request) if isinstance(request, ProbeRequest) else read_request(request)
            except BadClip as error:
                yield error


class KilledOnce(Pooled):
    """The first process that encodes a second batch is killed there, as by kill -9; `mark` is where it says so."""

    def __init__(self, mark: Path) -> None:
        super().__init__(pause=0.05)
        self.mark = mark

    def encode(self, clips: torch.Tensor) -> Posterior:
        if self.clips:
            with contextlib.suppress(FileExistsError):
                self.mark.touch(exist_ok=False)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(clips)
