"""What encoding would do, before it does anything: what is kept and dropped, how much room and time it takes."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmdit.clips.buckets import Bucket
from mmdit.clips.decode import BadClip, Decoded
from mmdit.clips.reader import ClipReader
from mmdit.clips.source import Found
from mmdit.errors import Refused
from mmdit.latents.codec import Codec
from mmdit.latents.facts import find_facts, sizes_of
from mmdit.latents.plan import Planned, plan_clips, read_request_of, speed_of
from mmdit.latents.report import kind_of
from mmdit.latents.request import DTYPES, ClipRules, EncodeOptions, latent_shapes

_MEASURED = 24  # clips read for the prediction of time


@dataclass(frozen=True)
class BucketForecast:
    """What one bucket would hold."""

    bucket: Bucket
    clips: int
    latent: tuple[int, int, int, int]
    bytes: int


@dataclass(frozen=True)
class Forecast:
    """What encoding would do."""

    sources: int
    buckets: list[BucketForecast]
    dropped: dict[str, int]
    """Kind of fault to number of clips, the commonest first, as far as headers show it."""
    examples: dict[str, str]
    """Kind of fault to the first source that has it, and the whole reason."""
    speeds: tuple[float, float, float]
    """Least, median and largest number of source seconds in a second of a clip; 1 is true speed."""
    seconds_of_video: float
    reading: float | None
    """Clips a second that all decoding processes together read; None where none could be read."""
    encoding: float | None
    """Clips a second that the codec encodes; None where it was not asked."""

    @property
    def clips(self) -> int:
        return sum(row.clips for row in self.buckets)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.buckets)

    @property
    def seconds(self) -> float | None:
        """How long encoding would take: the slower of reading and encoding, which go on at the same time."""
        rates = [rate for rate in (self.reading, self.encoding) if rate]
        return self.clips / min(rates) if rates else None


def forecast(
    found: Found, codec: Codec, rules: ClipRules, options: EncodeOptions, workers: int, *, with_codec: bool
) -> Forecast:
    """Looks into every source's header, reads a few clips for the time that it takes, and writes nothing.

    Args:
        codec: its rule is asked; its weights only `with_codec`.

    Raises:
        Refused: no source can be probed, or the codec cannot take a bucket.
    """
    latent_shapes(codec, rules)
    with ClipReader(workers, deadline=options.deadline) as reader:
        facts = find_facts(found.folder, found.clips, {}, reader, hashed=False)
        sizes = sizes_of(facts)
        if not sizes:
            first = next(iter(facts.values()))
            raise Refused(
                "no usable source", where=found.folder, got=f"{len(facts)}, the first: {first.reason or first.sha256}"
            )
        rules = rules.settled(codec, sizes)
        plan = plan_clips(found.clips, facts, rules, {}, probed=True)
        kept = [planned for planned in plan if planned.reason is None]
        reading = _reading_rate(found, kept, rules, reader)
    shapes, itemsize = latent_shapes(codec, rules), DTYPES[options.dtype].itemsize
    counts = Counter(planned.bucket for planned in kept)
    speeds = sorted(speed_of(planned, facts[planned.clip.path].probed) for planned in kept) or [1.0]
    reasons = Counter(kind_of(planned.reason) for planned in plan if planned.reason is not None)
    examples: dict[str, str] = {}
    for planned in plan:
        if planned.reason is not None:
            examples.setdefault(kind_of(planned.reason), f"{planned.clip.path}: {planned.reason}")
    return Forecast(
        sources=len(facts),
        buckets=[
            BucketForecast(bucket, counts[bucket], shape, counts[bucket] * 2 * math.prod(shape) * itemsize)
            for bucket, shape in shapes.items()
        ],
        dropped=dict(reasons.most_common()),
        examples=examples,
        speeds=(speeds[0], speeds[len(speeds) // 2], speeds[-1]),
        seconds_of_video=sum(planned.frames / planned.fps for planned in kept),
        reading=reading,
        encoding=_encoding_rate(codec, counts, options.batch_size) if with_codec and counts else None,
    )  # fmt: skip


def _reading_rate(found: Found, kept: Sequence[Planned], rules: ClipRules, reader: ClipReader) -> float | None:
    """Clips a second, over some that are spread evenly over all."""
    some = kept[:: max(1, len(kept) // _MEASURED)][:_MEASURED]
    began = time.perf_counter()
    results = list(reader.read_many(read_request_of(found.folder, planned, rules) for planned in some))
    seconds = time.perf_counter() - began
    good = [result for result in results if isinstance(result, Decoded) and not isinstance(result, BadClip)]
    return len(results) / seconds if good else None


def _encoding_rate(codec: Codec, counts: Counter[Bucket], batch_size: int) -> float:
    """Clips a second, each bucket weighed by how many clips it has."""
    seconds = 0.0
    for (frames, height, width), count in counts.items():
        batch = torch.zeros(min(batch_size, count), 3, frames, height, width)
        codec.encode(batch)  # the first call is slower
        began = time.perf_counter()
        codec.encode(batch).mean.cpu()
        seconds += (time.perf_counter() - began) / len(batch) * count
    return sum(counts.values()) / seconds
