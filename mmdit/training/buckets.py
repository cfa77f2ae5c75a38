"""The clips of a split by latent shape: a step trains on one of these buckets."""

from dataclasses import dataclass

from mmdit.diffusion.samplers import Process
from mmdit.errors import Refused
from mmdit.training.build import build_process, clip_cost
from mmdit.training.config import RunConfig
from mmdit.training.schedule import Stream, times_an_epoch
from mmdit.training.sources import Pool, Sources

Shape = tuple[int, int, int, int]
"""Of a latent: (channel, frame, height, width)."""


@dataclass(frozen=True)
class Bucket:
    """The clips of one latent shape: their order, and how many make a batch."""

    pools: list[int]
    """Numbers of `TrainingData.pools`."""
    stream: Stream
    batch_size: int
    process: Process
    """For the times; a flow's shift may go by the number of tokens."""


def make_buckets(pools: list[Pool], sources: Sources, config: RunConfig, *, training: bool) -> list[Bucket]:
    """One a latent shape, in the order in which they first occur.

    Args:
        training: whether the split is trained on: then sources have their shares.

    Raises:
        Refused: fewer clips than a batch.
    """
    counts, source_of = [pool.group.count for pool in pools], [pool.source for pool in pools]
    drawn = times_an_epoch(counts, source_of, sources.shares if training else [None] * len(sources.stores))
    if sum(drawn) < config.data.batch_size and not config.data.repeat and training:
        raise Refused(
            "fewer clips than a batch", where=sources.where, got=f"{sum(drawn)} clips",
            expected=f"data.batch_size {config.data.batch_size}, or more clips",
            fix="set data.batch_size lower, or data.repeat=true to have clips several times in a batch",
        )  # fmt: skip
    shapes = dict.fromkeys(pool.latent for pool in pools)
    sizes = _batch_sizes(config, list(shapes))
    buckets = []
    for shape in shapes:
        of_shape = [number for number, pool in enumerate(pools) if pool.latent == shape]
        stream = Stream(tuple(counts[n] for n in of_shape), tuple(drawn[n] for n in of_shape), config.seed)
        buckets.append(Bucket(of_shape, stream, sizes[shape], build_process(config, shape)))
    return buckets


def _batch_sizes(config: RunConfig, shapes: list[Shape]) -> dict[Shape, int]:
    data = config.data
    if data.batch_by == "clips":
        return dict.fromkeys(shapes, data.batch_size)
    costs = {shape: clip_cost(config.model, shape) for shape in shapes}
    whole = data.batch_size // data.batch_multiple
    return {shape: whole * max(costs.values()) // costs[shape] * data.batch_multiple for shape in shapes}
