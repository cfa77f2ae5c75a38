"""Decoded clips into shards: the codec's part of an encoding run."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdit.clips.decode import BadClip, Decoded
from mmdit.clips.video import frames_to_clip
from mmdit.latents.codec import Codec
from mmdit.latents.fidelity import psnr
from mmdit.latents.plan import DTYPES, Planned
from mmdit.latents.shards import Recorded, write_shard


@dataclass(frozen=True)
class _Latent:
    """One clip's posterior in the type that is stored, and its reconstruction PSNR where it was measured."""

    mean: Tensor
    std: Tensor
    psnr: float | None


@dataclass
class ShardMaker:
    """Takes decoded clips, a shard's worth at a time, and writes the shard."""

    codec: Codec
    folder: Path
    settings: dict[str, Any]
    recorded: Recorded
    batch_size: int
    psnr_every: int
    tell: Callable[[bool], None]
    """Told of each clip that is done whether it was skipped."""

    def make(self, part: Sequence[Planned], results: Iterator[Decoded | BadClip]) -> None:
        """Encodes and writes one shard. Batches do not cross shards, so that a resumed store has the same bytes."""
        rows: dict[str, dict[str, Any]] = {}
        latents: dict[str, Tensor] = {}
        waiting: list[tuple[Planned, Decoded]] = []
        for place, planned in enumerate(part):
            result = next(results)
            if isinstance(result, BadClip):
                rows[planned.id] = _skipped(planned, result.reason)
                self.tell(True)
            else:
                waiting.append((planned, result))
            if waiting and (len(waiting) == self.batch_size or place == len(part) - 1):
                for (owner, decoded), latent in zip(waiting, self._encode(waiting), strict=True):
                    rows[owner.id] = row = _row(owner, decoded, latent)
                    if row["reason"] is None:
                        latents[f"{owner.id}.mean"], latents[f"{owner.id}.std"] = latent.mean, latent.std
                    self.tell(row["reason"] is not None)
                waiting.clear()
        number = self.recorded.next_number()
        ordered = [rows[planned.id] for planned in part]
        self.recorded.add(number, ordered, write_shard(self.folder, number, self.settings, ordered, latents))

    def _encode(self, batch: Sequence[tuple[Planned, Decoded]]) -> list[_Latent]:
        clips = torch.stack([frames_to_clip(decoded.frames) for _, decoded in batch])
        posterior = self.codec.encode(clips)
        dtype = DTYPES[self.settings["dtype"]]
        means, stds = posterior.mean.to("cpu", dtype), posterior.std.to("cpu", dtype)
        sample = [i for i, (planned, _) in enumerate(batch) if self._measured(planned)]
        known: dict[int, float] = {}
        if sample:
            again = self.codec.decode(means[sample].float()).cpu()
            measured = psnr(again, clips[sample]).tolist()
            known = dict(zip(sample, measured, strict=True))
        return [_Latent(means[i].contiguous(), stds[i].contiguous(), known.get(i)) for i in range(len(batch))]

    def _measured(self, planned: Planned) -> bool:
        """Whether this clip is one of those whose PSNR is measured: by content, so that the order does not matter."""
        return self.psnr_every > 0 and int(planned.id[:8], 16) % self.psnr_every == 0


def _skipped(planned: Planned, reason: str) -> dict[str, Any]:
    return {"id": planned.id, "source": planned.clip.path, "reason": reason}


def _row(planned: Planned, decoded: Decoded, latent: _Latent) -> dict[str, Any]:
    mean, std = latent.mean.double(), latent.std.double()
    if not (mean.isfinite().all() and std.isfinite().all()):
        return _skipped(
            planned, "latent not finite: the codec cannot encode it, or its values are too large for the type"
        )
    height, width = decoded.source_size
    return {
        "id": planned.id,
        "source": planned.clip.path,
        "reason": None,
        "start": decoded.start,
        "end": decoded.end,
        "source_frames": decoded.source_frames,
        "source_fps": decoded.source_fps,
        "source_height": height,
        "source_width": width,
        "reader": decoded.reader,
        "psnr": latent.psnr,
        "total": mean.sum(dim=(1, 2, 3)).tolist(),
        "square": (mean.square() + std.square()).sum(dim=(1, 2, 3)).tolist(),
    }
