"""Decoded clips into shards: the codec's part of an encoding run, the same in every process that takes part."""

import json
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from mmdit import files
from mmdit.clips.buckets import Bucket
from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.clips.reader import ClipReader
from mmdit.clips.windows import Windows
from mmdit.latents.batches import AHEAD_BYTES, Read, as_memory_allows, encode_batch, fault_of
from mmdit.latents.claims import Claims
from mmdit.latents.codec import Codec
from mmdit.latents.fidelity import psnr
from mmdit.latents.plan import Planned, read_request_of
from mmdit.latents.request import ClipRules, EncodeOptions
from mmdit.latents.shards import write_shard


@dataclass
class Work:
    """What is to be made, as every process of a run knows it.

    `shards`: number of a shard to the clips that belong into it. `settings`: those that all clips of a store share.
    """

    root: Path
    folder: Path
    rules: ClipRules
    options: EncodeOptions
    settings: dict[str, Any]
    shards: dict[int, Sequence[Planned]]


def work_folder(folder: Path) -> Path:
    """Where the processes of a run find what is to be made, and their claims; there only while a run is under way."""
    return folder / ".work"


def write_work(work: Work) -> None:
    """Writes down what is to be made, for `read_work`."""
    about = {"root": str(work.root), "settings": work.settings, "options": asdict(work.options)}
    rules = asdict(work.rules)
    with files.new_file(work_folder(work.folder) / "work.jsonl", durable=False) as part, open(part, "w") as lines:
        lines.write(json.dumps(about | {"rules": rules}) + "\n")
        for number, clips in work.shards.items():
            lines.writelines(f"{number} {planned.as_json()}\n" for planned in clips)


def read_work(folder: Path) -> Work:
    with open(work_folder(folder) / "work.jsonl") as lines:
        about = json.loads(next(lines))
        rules = about["rules"]
        rules |= {"buckets": tuple(Bucket(*bucket) for bucket in rules["buckets"])}
        rules |= {"windows": Windows(**rules["windows"])}
        shards: dict[int, list[Planned]] = {}
        for line in lines:
            number, _, planned = line.partition(" ")
            shards.setdefault(int(number), []).append(Planned.from_json(planned))
    options = EncodeOptions(**about["options"])
    return Work(Path(about["root"]), folder, ClipRules(**rules), options, about["settings"], dict(shards))


Tell = Callable[[Planned, bool], None]
"""Told of each clip that is done whether it was skipped."""


def make_shards(work: Work, codec: Codec, claims: Claims, workers: int, tell: Tell) -> None:
    """Makes those shards of a run that nobody else makes, until all are done by somebody.

    Raises:
        Stopped: out of memory with one clip a batch.
    """
    with ClipReader(workers, deadline=work.options.deadline, ahead=_ahead(work)) as pool:
        while left := [number for number in work.shards if not claims.is_done(number)]:
            if not _make_free_ones(work, codec, claims, left, pool, tell):
                claims.wait()  # for the others, or for the claims of those that died


def _make_free_ones(
    work: Work, codec: Codec, claims: Claims, left: Sequence[int], pool: ClipReader, tell: Tell
) -> bool:
    """Makes the shards that can be claimed now, reading ahead from one into the next; whether there was any."""
    taken: queue.SimpleQueue[int] = queue.SimpleQueue()

    def requests() -> Iterator[ReadRequest]:
        for number in claims.take(left):
            taken.put(number)
            for planned in work.shards[number]:
                yield read_request_of(work.root, planned, work.rules)

    shard: _Shard | None = None
    made = False
    for result in pool.read_many(requests()):
        if shard is None:  # its claim was taken before its first clip was read
            number = taken.get_nowait()
            shard = _Shard(work, codec, number, work.shards[number], tell)
        assert isinstance(result, Decoded | BadClip)
        shard.take(result)
        if shard.is_full:
            shard.write()
            claims.release(shard.number)
            shard = None
            made = True
    return made


def _ahead(work: Work) -> int:
    """How many decoded clips may wait for the codec."""
    largest = max((3 * planned.frames * planned.size[0] * planned.size[1] for planned in _all(work)), default=1)
    return max(1, min(2 * work.options.batch_size, AHEAD_BYTES // largest))


def _all(work: Work) -> Iterator[Planned]:
    for part in work.shards.values():
        yield from part


@dataclass
class _Shard:
    """One shard in the making. Batches do not cross shards, so that a resumed store has the same bytes."""

    work: Work
    codec: Codec
    number: int
    part: Sequence[Planned]
    tell: Tell
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    latents: dict[str, Tensor] = field(default_factory=dict)
    waiting: list[tuple[Planned, Decoded]] = field(default_factory=list)
    seen: int = 0

    @property
    def is_full(self) -> bool:
        return self.seen == len(self.part)

    def take(self, result: Decoded | BadClip) -> None:
        """The next clip of the shard, in the order of its part."""
        planned = self.part[self.seen]
        self.seen += 1
        if isinstance(result, BadClip):
            self._record(planned, skipped(planned, result.reason))
        else:
            self.waiting.append((planned, result))
        ends = self.is_full or self.part[self.seen].bucket != planned.bucket  # a batch has one shape
        if self.waiting and (ends or len(self.waiting) == self.work.options.batch_size):
            for (owner, decoded), latent in zip(self.waiting, self._encode(self.waiting), strict=True):
                self._record(owner, _row(owner, decoded, latent, self.work.options.psnr_floor), latent)
            self.waiting.clear()

    def write(self) -> None:
        ordered = [self.rows[planned.id] for planned in self.part]
        write_shard(self.work.folder, self.number, self.work.settings, ordered, self.latents)

    def _record(self, planned: Planned, row: dict[str, Any], latent: "_Latent | None" = None) -> None:
        self.rows[planned.id] = row
        if latent is not None and row["reason"] is None:
            self.latents[f"{planned.id}.mean"], self.latents[f"{planned.id}.std"] = latent.mean, latent.std
        self.tell(planned, row["reason"] is not None)

    def _encode(self, batch: Read) -> "list[_Latent]":
        """The latents of clips of one shape."""
        return as_memory_allows(self._encode_at_once, batch)

    def _encode_at_once(self, batch: Read) -> "list[_Latent]":
        clips, means, stds = encode_batch(self.codec, batch, self.work.options.dtype)
        sample = [i for i, (planned, _) in enumerate(batch) if self._measured(planned)]
        found: dict[int, float] = {}
        if sample:
            again = self.codec.decode(means[sample].float()).cpu()
            found = dict(zip(sample, psnr(again, clips[sample]).tolist(), strict=True))
        return [_Latent(means[i].contiguous(), stds[i].contiguous(), found.get(i)) for i in range(len(batch))]

    def _measured(self, planned: Planned) -> bool:
        """Whether this clip is one of those whose PSNR is measured: by content, so that the order does not matter."""
        every = self.work.options.psnr_every
        return every > 0 and int(planned.id[:8], 16) % every == 0


@dataclass(frozen=True)
class _Latent:
    """One clip's posterior in the type that is stored, and its reconstruction PSNR where it was measured."""

    mean: Tensor
    std: Tensor
    psnr: float | None


def skipped(planned: Planned, reason: str) -> dict[str, Any]:
    """The row of a clip that is not in the store."""
    return {"id": planned.id, "source": planned.clip.path, "reason": reason}


def _row(planned: Planned, decoded: Decoded, latent: _Latent, floor: float | None) -> dict[str, Any]:
    mean, std = latent.mean.double(), latent.std.double()
    if (fault := fault_of(mean, std)) is not None:
        return skipped(planned, fault)
    if floor is not None and latent.psnr is not None and latent.psnr < floor:
        return skipped(planned, f"badly reconstructed: {latent.psnr:.1f} dB PSNR, the floor is {floor:g}")
    height, width = decoded.source_size
    return {
        "id": planned.id,
        "source": planned.clip.path,
        "reason": None,
        "start": decoded.start,
        "end": decoded.end,
        "fps": planned.fps,
        "frames": planned.frames,
        "height": planned.size[0],
        "width": planned.size[1],
        "flip": planned.flip,
        "stride": planned.stride,
        "speed": decoded.speed,
        "latent": list(mean.shape),
        "source_frames": decoded.source_frames,
        "source_fps": decoded.source_fps,
        "source_height": height,
        "source_width": width,
        "reader": decoded.reader,
        "psnr": latent.psnr,
        "total": mean.sum(dim=(1, 2, 3)).tolist(),
        "square": (mean.square() + std.square()).sum(dim=(1, 2, 3)).tolist(),
    }
