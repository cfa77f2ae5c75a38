"""Sets of clips to measure, in an order that depends on what is in them and not on where they lie.

Shapes: b clips, uint8 (b, 3, frame, height, width).
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mmdit import seeds
from mmdit.clips.decode import BadClip, ReadRequest
from mmdit.clips.reader import ClipReader
from mmdit.clips.video import clip_to_frames
from mmdit.errors import Refused, Stopped
from mmdit.evaluation.view import View
from mmdit.latents.codec import Codec
from mmdit.latents.facts import read_facts, where_of
from mmdit.latents.store import LatentStore
from mmdit.latents.verify import check_codec

Row = dict[str, Any]
READERS = 2
"""Processes that decode, for each set."""


class ClipSet(Protocol):
    """Clips by number.

    Attributes:
        rows: what is known of each: "caption", "label" and attributes, where there are any.
        size: (frames, height, width) of every clip.
        fingerprint: what the pixels and captions of the set are a function of, as a hash.
    """

    rows: Sequence[Row]
    size: tuple[int, int, int]

    @property
    def fingerprint(self) -> str: ...

    def read(self, numbers: Sequence[int]) -> Tensor:
        """These clips, uint8 (b, 3, frame, height, width)."""
        ...


class RealClips:
    """Clips that are there: those of a store, or files. `StoreClips` and `FolderClips` are the kinds.

    Raises:
        Refused: clips too short or of unlike size for the view.
    """

    def __init__(
        self,
        ids: Sequence[str],
        rows: Sequence[Row],
        view: View,
        *,
        seed: int | None,
        where: object,
        reader: ClipReader,
    ) -> None:
        self.ids, self.rows, self.where, self._view = ids, rows, where, view
        self.starts = [
            view.start(row["frames"], None if seed is None else seeds.seed_at(seed, "start", id), where)
            for id, row in zip(ids, rows, strict=True)
        ]
        self.size = view.common_size([(row["frames"], row["height"], row["width"]) for row in rows], where)
        self._reader = reader

    @property
    def fingerprint(self) -> str:
        """What the pixels and captions of the set are a function of, as a hash."""
        captions = [row.get("caption") for row in self.rows]
        each = list(zip(self.ids, self.starts, captions, strict=True))
        return hashlib.sha256(json.dumps([each, repr(self._view), self._pixels()]).encode()).hexdigest()

    def read(self, numbers: Sequence[int]) -> Tensor:
        """These clips, uint8 (b, 3, frame, height, width). Raises Stopped for one that cannot be read."""
        pairs = zip(self._whole(numbers), numbers, strict=True)
        return torch.stack([self._view.cut(clip, self._skipped(number)) for clip, number in pairs])

    def close(self) -> None:
        """Ends the processes that read."""
        self._reader.close()

    def _pixels(self) -> str:
        return "originals"

    def _skipped(self, number: int) -> int:
        """How many of the frames that are read lie before the first that is shown."""
        return self.starts[number]

    def _whole(self, numbers: Sequence[int]) -> Iterable[Tensor]:
        requests = [self._request(number) for number in numbers]
        for request, answer in zip(requests, self._reader.read_many(requests), strict=True):
            if isinstance(answer, BadClip):
                raise Stopped("a clip cannot be read", where=request.path, got=answer)
            yield torch.from_numpy(answer.frames).permute(3, 0, 1, 2)

    def _request(self, number: int) -> ReadRequest:
        raise NotImplementedError


def drawn_places(store: LatentStore, split: str, *, count: int | None, seed: int) -> list[tuple[str, int]]:
    """Ids and rows of the first `count` clips of a split (None: all), in an order drawn by `seed` from the ids.

    Raises Refused where there is no such split, or fewer clips than asked for.
    """
    places = store.split(split)
    if not places:
        known = ", ".join(sorted({group.split for group in store.groups}))
        raise Refused("no such split", where=store.place, got=split, expected=f"one of {known}")
    ids = store.column("id", places.start, len(places)).to_pylist()
    return drawn(zip(ids, places, strict=True), count, seed, f"{store.place}, split {split}")


class StoreClips(RealClips):
    """Clips of one split of a store: the first `count` in an order drawn by `seed` from their ids.

    Args:
        count: None for all.
        reconstructed: take what `codec` (to be set before reading) makes of the latents, not the originals, cut and
            scaled as they were encoded.

    Raises:
        Refused: no such split, fewer clips than asked for, or originals that are not there any more.
    """

    codec: Codec | None = None

    def __init__(
        self, store: LatentStore, split: str, view: View, *, count: int | None, seed: int, reconstructed: bool = False
    ) -> None:
        where, taken = f"{store.place}, split {split}", drawn_places(store, split, count=count, seed=seed)
        rows = [store.row(place) for _, place in taken]
        super().__init__([id for id, _ in taken], rows, view, seed=seed, where=where, reader=ClipReader(READERS))
        self._places, self._store, self._reconstructed = [place for _, place in taken], store, reconstructed
        source = (store.meta.get("made") or {}).get("source")
        if not reconstructed and (source is None or not Path(source).is_dir()):
            raise Refused(
                "the originals of the store are not there", where=store.place, got=source,
                fix="say pixels=reconstructions, to compare with what the codec makes of them",
            )  # fmt: skip
        self._source = Path(source or "")
        self._facts = {} if reconstructed else read_facts(Path(str(store.place)))

    def _pixels(self) -> str:
        return f"codec {self._store.meta['codec']['fingerprint']}" if self._reconstructed else "originals"

    def _whole(self, numbers: Sequence[int]) -> Iterable[Tensor]:
        if not self._reconstructed:
            yield from super()._whole(numbers)
            return
        if self.codec is None:
            raise Refused("no codec to reconstruct with", where=self.where)
        check_codec(self._store, self.codec)
        for number in numbers:
            mean = self._store.latent(self._places[number])[0].float()[None]
            yield as_bytes(self.codec.decode(mean).cpu())[0]

    def _request(self, number: int) -> ReadRequest:
        row = self.rows[number]
        facts = self._facts.get(row["source"])
        file, offset, length = where_of(self._source, row["source"], facts.part if facts else None)
        return ReadRequest(
            path=str(file.absolute()), offset=offset, length=length, frames=row["frames"],
            size=(row["height"], row["width"]), fps=row["fps"], start=row["start"], flip=row["flip"],
            stride=row["stride"], reader="decord" if row["reader"] == "decord" else "pyav",
        )  # fmt: skip


def drawn(listed: Iterable[tuple[str, Any]], count: int | None, seed: int, where: object) -> list[tuple[str, Any]]:
    """The first `count` pairs of id and value, in an order drawn by `seed` from the ids; Refused for fewer of them."""
    pairs = sorted(listed, key=lambda pair: (seeds.seed_at(seed, "order", pair[0]), pair[0]))
    if count is not None and count > len(pairs):
        raise Refused(
            "too few clips", where=where, got=len(pairs), expected=count,
            fix=f"ask for {len(pairs)} at most (samples=, real=), or give more clips",
        )  # fmt: skip
    return pairs[:count]


def as_bytes(clips: Tensor) -> Tensor:
    """Clips (b, 3, frame, height, width) in [-1, 1] as uint8, as a file would hold them."""
    return torch.stack([torch.from_numpy(clip_to_frames(clip)) for clip in clips]).permute(0, 4, 1, 2, 3)


def as_floats(clips: Tensor) -> Tensor:
    """uint8 clips as float32 in [-1, 1]."""
    return clips.float().div(127.5).sub(1.0)
