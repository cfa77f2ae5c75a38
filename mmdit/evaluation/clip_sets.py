"""Sets of clips to measure, in an order that depends on what is in them and not on where they lie.

Shapes: b clips, uint8 (b, 3, frame, height, width).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmdit import seeds
from mmdit.clips.decode import BadClip, ReadRequest
from mmdit.clips.reader import ClipReader
from mmdit.clips.video import clip_to_frames
from mmdit.errors import Refused, Stopped
from mmdit.latents.codec import Codec
from mmdit.latents.facts import read_facts, where_of
from mmdit.latents.store import LatentStore
from mmdit.latents.verify import check_codec


class ClipSet(Protocol):
    """Clips by number, and what is known of each: "id", "caption", "label" and attributes, where there are any."""

    @property
    def rows(self) -> Sequence[dict[str, Any]]: ...

    def read(self, numbers: Sequence[int]) -> Tensor:
        """These clips, uint8 (b, 3, frame, height, width)."""
        ...


class StoreClips:
    """Clips of one split of a store: the first `count` in an order drawn by `seed` from their ids.

    Args:
        count: None for all.
        codec: the store's, to take what it makes of the latents; None for the originals, cut and scaled as they were
            encoded.

    Raises:
        Refused: no such split, fewer clips than asked for, another codec, or originals that are not there any more.
    """

    def __init__(
        self, store: LatentStore, split: str, *, count: int | None, seed: int, codec: Codec | None = None
    ) -> None:
        places = store.split(split)
        if not places:
            known = ", ".join(sorted({group.split for group in store.groups}))
            raise Refused("no such split", where=store.place, got=split, expected=f"one of {known}")
        if count is not None and count > len(places):
            raise Refused("too few clips", where=f"{store.place}, split {split}", got=len(places), expected=count)
        ids = store.column("id", places.start, len(places)).to_pylist()
        drawn = sorted(zip((seeds.seed_at(seed, "real", id) for id in ids), ids, places, strict=True))[:count]
        self.rows = [store.row(place) for _, _, place in drawn]
        self._places = [place for _, _, place in drawn]
        self._store, self._codec, self._reader = store, codec, ClipReader()
        if codec is not None:
            check_codec(store, codec)
            return
        source = (store.meta.get("made") or {}).get("source")
        if source is None or not Path(source).is_dir():
            raise Refused(
                "the originals of the store are not there", where=store.place, got=source,
                fix="say pixels=reconstructions, to compare with what the codec makes of them",
            )  # fmt: skip
        self._source, self._facts = Path(source), read_facts(Path(str(store.place)))

    def read(self, numbers: Sequence[int]) -> Tensor:
        """These clips, uint8 (b, 3, frame, height, width). Raises Stopped for one that cannot be read."""
        if self._codec is not None:
            means = [self._store.latent(self._places[number])[0].float() for number in numbers]
            return as_bytes(torch.cat([self._codec.decode(mean[None]).cpu() for mean in means]))
        requests = [self._request(self.rows[number]) for number in numbers]
        clips = []
        for request, answer in zip(requests, self._reader.read_many(requests), strict=True):
            if isinstance(answer, BadClip):
                raise Stopped("a real clip cannot be read", where=request.path, got=answer)
            clips.append(torch.from_numpy(answer.frames))
        return torch.stack(clips).permute(0, 4, 1, 2, 3)

    def close(self) -> None:
        """Ends the processes that read."""
        self._reader.close()

    def _request(self, row: dict[str, Any]) -> ReadRequest:
        facts = self._facts.get(row["source"])
        file, offset, length = where_of(self._source, row["source"], facts.part if facts else None)
        return ReadRequest(
            path=str(file.absolute()), offset=offset, length=length, frames=row["frames"],
            size=(row["height"], row["width"]), fps=row["fps"], start=row["start"], flip=row["flip"],
            stride=row["stride"], reader="decord" if row["reader"] == "decord" else "pyav",
        )  # fmt: skip


def as_bytes(clips: Tensor) -> Tensor:
    """Clips (b, 3, frame, height, width) in [-1, 1] as uint8, as a file would hold them."""
    return torch.stack([torch.from_numpy(clip_to_frames(clip)) for clip in clips]).permute(0, 4, 1, 2, 3)


def as_floats(clips: Tensor) -> Tensor:
    """uint8 clips as float32 in [-1, 1]."""
    return clips.float().div(127.5).sub(1.0)
