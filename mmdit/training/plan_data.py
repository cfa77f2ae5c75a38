"""What a plan knows of the data: read from the store, or told by the user where there is none yet."""

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

from mmdit.conditioning import build_text_encoder
from mmdit.conditioning.text import MAX_TOKENS
from mmdit.errors import Refused
from mmdit.training.buckets import make_buckets
from mmdit.training.build import Inputs
from mmdit.training.config import DataConfig, RunConfig
from mmdit.training.memory import StepInputs
from mmdit.training.sources import Sources

Latent = tuple[int, int, int, int]
_WORDS = 1000  # of a stand-in vocabulary


@dataclass(frozen=True)
class PlanData:
    """`shapes`: latent shape (channel, frame, height, width) -> samples an epoch, 1 where that is not known."""

    shapes: dict[Latent, int]
    clips: dict[str, int] | None
    """By split; None without a store."""
    labels: int
    captions: list[str] = field(default_factory=list, repr=False)
    """Each that occurs; empty without a store."""
    notes: list[str] = field(default_factory=list)
    """What is left out or missing, a line each."""
    batches: dict[Latent, int] = field(default_factory=dict)
    """Shape -> clips a step; without one, the recipe's batch size."""

    @property
    def largest(self) -> Latent:
        return max(self.shapes, key=prod)


def data_of_store(config: RunConfig) -> PlanData:
    """What the recipe's store holds for it.

    Raises:
        Refused: no whole store there.
    """
    sources, data = Sources.open(config.data), config.data
    clips: Counter[str] = Counter()
    for store in sources.stores:
        for group in store.groups:
            clips[group.split] += group.count
    pools = sources.pools(data.split)
    if not pools:
        raise Refused(
            "no clips to train on", where=sources.where, got=f"splits {', '.join(clips) or 'none'}", expected=data.split
        )
    buckets = make_buckets(pools, sources, config, training=True)
    shapes = {pools[bucket.pools[0]].latent: bucket.stream.epoch_size for bucket in buckets}
    batches = {pools[bucket.pools[0]].latent: bucket.batch_size for bucket in buckets}
    notes = [f"{skipped} clips could not be encoded: quarantine.parquet says why" for skipped in _skipped(sources)]
    for name in clips.keys() - {data.split, data.validation_split}:
        notes.append(f"split {name} ({clips[name]} clips) is not trained on")
    if data.validation_split not in clips:
        notes.append(f"no split {data.validation_split}: no held-out loss")
    captions: dict[str, None] = {}
    for name in (data.split, data.validation_split):
        notes += _missing(config, sources, name, captions if name == data.split else {})
    return PlanData(shapes, dict(clips), len(sources.labels), list(captions), notes, batches)


def _skipped(sources: Sources) -> list[int]:
    counts = [store.meta["counts"]["skipped"] for store in sources.stores]
    return [count for count in counts if count]


def _missing(config: RunConfig, sources: Sources, split: str, captions: dict[str, None]) -> list[str]:
    """What training would refuse of a split, a line each; its captions are added to those given."""
    unlabelled = uncaptioned = total = 0
    for pool in sources.pools(split):
        first, count = pool.group.first, pool.group.count
        total += count
        if config.conditions.labels:
            unlabelled += int((sources.label_numbers(pool) < 0).sum())
        if config.conditions.text is not None:
            column = sources.stores[pool.source].column("caption", first, count).fill_null("")
            counts = {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
            uncaptioned += counts.pop("", 0)
            captions |= dict.fromkeys(counts)
    return [
        f"{missing} of {total} clips of split {split} have no {what}: training refuses them"
        for missing, what in ((unlabelled, "label"), (uncaptioned, "caption"))
        if missing
    ]


def data_as_told(config: RunConfig, latent: Latent | None, labels: int | None) -> PlanData:
    """Data of one latent shape, for a recipe whose store is not there.

    Raises:
        Refused: the shape, or the number of labels that the recipe conditions on, is not told.
    """
    where = ", ".join(where_of(config.data))
    if latent is None:
        raise Refused(
            "no store to plan for", where=where, expected="a latent store, or the shape of its latents",
            fix="encode first, or say --latent CHANNELxFRAMExHEIGHTxWIDTH",
        )  # fmt: skip
    if config.conditions.labels and labels is None:
        raise Refused("no store to count the labels of", where=where, fix="say --labels NUMBER")
    notes = [f"no store at {where}: planned for clips as told; their number and captions are not known"]
    return PlanData({latent: 1}, None, labels or 0, notes=notes)


def where_of(data: DataConfig) -> list[str]:
    """The stores and videos that a recipe names."""
    named = data.sources or (data,)
    return [str(source.store if source.videos is None else source.videos.source) for source in named]


def step_inputs(config: RunConfig, data: PlanData, latent: Latent, text: tuple[int, int] | None) -> StepInputs:
    """What a step on clips of this latent shape is fed with.

    Args:
        text: width and tokens of a frozen text encoder; None to ask the encoder.

    Raises:
        Refused: a frozen text encoder that is not on this machine, and not told.
    """
    about = config.conditions.text
    if about is None:
        return StepInputs(Inputs(latent, data.labels))
    if about.encoder != "embedded":
        width, tokens = text or _frozen(about.encoder)
        return StepInputs(Inputs(latent, data.labels, width), tokens)
    words = data.captions or [" ".join(f"word{number}" for number in range(_WORDS))]
    sizes: dict[str, Any] = about.model_dump(exclude={"encoder"})
    encoder = build_text_encoder(words, **sizes)
    longest = int(encoder.tokenize(data.captions)[1].sum(1).max()) if data.captions else about.max_tokens
    return StepInputs(Inputs(latent, data.labels, encoder.dim), longest, encoder)


def _frozen(name: str) -> tuple[int, int]:
    """Width and most tokens of an encoder of transformers, by its config alone; nothing is fetched."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError) as error:
        raise Refused(
            "the text encoder is not on this machine", where=name, got=type(error).__name__,
            fix="say its width and tokens as --text WIDTHxTOKENS (CLIP ViT-L/14: 768x77)",
        ) from None  # fmt: skip
    config = getattr(config, "text_config", config)
    return int(config.hidden_size), int(getattr(config, "max_position_embeddings", MAX_TOKENS))
