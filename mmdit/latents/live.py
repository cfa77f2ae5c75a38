"""Latents straight from videos, with the codec in the loop: what a store of the same rules would hold, not kept."""

import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple, NoReturn

from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.clips.probe import Probed
from mmdit.clips.reader import ClipReader
from mmdit.errors import Refused
from mmdit.latents.ahead import ReadAhead
from mmdit.latents.batches import AHEAD_BYTES, Read, as_memory_allows, encode_batch, fault_of
from mmdit.latents.codec import Codec
from mmdit.latents.index import Latent, Store
from mmdit.latents.place import Folder
from mmdit.latents.plan import Planned, SourcePlan, read_request_of, settings_of, speed_of, workers_of
from mmdit.latents.report import check_any_kept, kind_of
from mmdit.latents.request import EncodeOptions, latent_shapes
from mmdit.latents.rows import Rows
from mmdit.latents.tables import about_clips, in_order, index_table

log = logging.getLogger("mmdit.latents")


class Skipped(NamedTuple):
    """A clip that is not trained on, and why."""

    id: str
    source: str
    reason: str


class LiveStore(Store):
    """Videos as a store: rows, ids, labels and captions are those of the store that `mmdit encode` makes by the same
    rules, and so are the latents, to a unit in the last place of the stored type where the codec computes batches of
    unlike size in unlike ways, else to the bit. They are encoded whenever they are asked for.

    A clip that only reading finds unusable has a row here, and none in a store. What only reading tells of a row is
    None: shard, psnr, the columns of the source and the reader, and `end` with a stride.

    It stays in its process; a forked one cannot read from it.

    Attributes:
        skipped: the clips that gave no latent, dropped by their headers or found out when they were read. Each is read
            once only, and logged once.

    Args:
        plan: from `plan_source` with the same codec and options, `probed`.
        codec: on the device that is to encode.
        options: `dtype`, `batch_size`, `workers` and `deadline` are those of encoding.
        codec_name: the name or folder that the codec was loaded from.

    Raises:
        Refused: no clip is left, or the codec cannot take a bucket.
    """

    def __init__(self, plan: SourcePlan, codec: Codec, options: EncodeOptions, *, codec_name: str = "") -> None:
        shapes = latent_shapes(codec, plan.rules)
        check_any_kept((planned.reason for planned in plan.clips), plan.found.folder)
        kept = in_order(
            (planned, _known(planned, shapes[planned.bucket], plan.facts[planned.clip.path].probed))
            for planned in plan.clips
            if planned.reason is None
        )
        meta = {
            "settings": settings_of(codec, options),
            "codec": {"name": codec_name, "fingerprint": codec.fingerprint},
            "labels": plan.found.labels,
            **about_clips(kept, len(plan.clips) - len(kept)),
        }
        super().__init__(Folder(plan.found.folder), meta, Rows.of_table(index_table(kept)))
        self.skipped: list[Skipped] = []
        self._root = plan.found.folder
        self._clips = [planned for planned, _ in kept]
        self._rules, self._codec, self._options = plan.rules, codec, options
        self._unusable: set[int] = set()
        self._lock, self._owner = threading.Lock(), os.getpid()
        self._ahead = ReadAhead(ClipReader(workers_of(options), deadline=options.deadline), AHEAD_BYTES)
        self.close = weakref.finalize(self, self._ahead.close)
        self._tell_dropped(plan.clips)

    def _tell_dropped(self, clips: Sequence[Planned]) -> None:
        self.skipped += [Skipped(clip.id, clip.clip.path, clip.reason) for clip in clips if clip.reason is not None]
        if self.skipped:
            kinds = Counter(kind_of(skipped.reason) for skipped in self.skipped).most_common()
            said = ", ".join(f"{count} {kind}" for kind, count in kinds)
            first = self.skipped[0]
            log.warning(
                "%s: %d of %d clips are left out (%s), the first is %s: %s",
                self.place, len(self.skipped), len(clips), said, first.source, first.reason,
            )  # fmt: skip

    def __reduce__(self) -> NoReturn:
        raise TypeError("videos are read by the process that opened them: a LiveStore cannot be sent to another")

    def read_ahead(self, rows: Sequence[int]) -> None:
        """Begins to read the clips of these rows, for a `latents` to come; does not wait for them."""
        self._check_process()
        self._ahead.hint(self._requests(rows))

    def latents(self, rows: Sequence[int]) -> list[Latent | None]:
        """The latents of these rows, on the CPU in the type that a store would hold; None for a clip that cannot be
        read or encoded, which is then in `skipped`.

        Clips of one shape are encoded together, up to `batch_size` at once.

        Raises:
            Stopped: out of memory with one clip, or no process can be started to read.
            IndexError: no such row.
        """
        self._check_process()
        answers = self._ahead.take(self._requests(rows))
        found: dict[int, Latent] = {}
        with self._lock:
            for row, answer in answers.items():
                if isinstance(answer, BadClip):
                    self._skip(row, answer.reason)
            read = {row: answer for row, answer in answers.items() if isinstance(answer, Decoded)}
            for batch in self._batches(list(read)):
                members: Read = [(self._clips[row], read[row]) for row in batch]
                for row, latent in zip(batch, as_memory_allows(self._encode, members), strict=True):
                    if (fault := fault_of(*latent)) is None:
                        found[row] = latent
                    else:
                        self._skip(row, fault)
        return [found.get(row) for row in rows]

    def _requests(self, rows: Sequence[int]) -> dict[int, ReadRequest]:
        wanted = [row for row in dict.fromkeys(rows) if row not in self._unusable]
        if wanted and not 0 <= min(wanted) <= max(wanted) < len(self):
            raise IndexError(f"rows {min(wanted)} to {max(wanted)} of {len(self)}")
        return {row: read_request_of(self._root, self._clips[row], self._rules) for row in wanted}

    def _batches(self, rows: Sequence[int]) -> Iterator[list[int]]:
        """The rows in parts of one shape, in the order of their shapes and then their own."""
        for _, members in groupby(sorted(rows, key=self._bucket), self._bucket):
            alike = list(members)
            for first in range(0, len(alike), self._options.batch_size):
                yield alike[first : first + self._options.batch_size]

    def _bucket(self, row: int) -> Any:
        return self._clips[row].bucket

    def _encode(self, batch: Read) -> list[Latent]:
        _, means, stds = encode_batch(self._codec, batch, self._options.dtype)
        return list(zip(means, stds, strict=True))

    def _skip(self, row: int, reason: str) -> None:
        planned = self._clips[row]
        self._unusable.add(row)
        self.skipped.append(Skipped(planned.id, planned.clip.path, reason))
        log.warning("%s is left out of training: %s", planned.clip.path, reason)

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise Refused(
                "videos are read by the training process alone", where=self.place, got="a worker process",
                fix="set data.workers to 0: reading has processes of its own, data.videos.workers",
            )  # fmt: skip


def _known(planned: Planned, latent: Sequence[int], probed: Probed | None) -> dict[str, Any]:
    """The row of a clip, as far as it is known before it is read."""
    start = planned.clip.start or 0.0
    return {
        "id": planned.id,
        "start": start,
        "end": start + (planned.frames - 1) / planned.fps if planned.stride is None else None,
        "fps": planned.fps,
        "frames": planned.frames,
        "height": planned.size[0],
        "width": planned.size[1],
        "flip": planned.flip,
        "stride": planned.stride,
        "speed": speed_of(planned, probed),
        "latent": list(latent),
    }
