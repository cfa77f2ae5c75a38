"""What a plan knows of the data: read from the store, or told by the user where there is none yet."""

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from typing import Any

from mmdit.conditioning import build_text_encoder
from mmdit.conditioning.text import MAX_TOKENS
from mmdit.errors import Refused
from mmdit.latents.store import LatentStore
from mmdit.training.build import Inputs
from mmdit.training.config import RunConfig
from mmdit.training.memory import StepInputs

Latent = tuple[int, int, int, int]
_WORDS = 1000  # of a stand-in vocabulary


@dataclass(frozen=True)
class PlanData:
    """`shapes`: latent shape (channel, frame, height, width) -> clips trained on, 1 where that is not known."""

    shapes: dict[Latent, int]
    clips: dict[str, int] | None
    """By split; None without a store."""
    labels: int
    captions: list[str] = field(default_factory=list, repr=False)
    """Each that occurs; empty without a store."""
    notes: list[str] = field(default_factory=list)
    """What is left out or missing, a line each."""

    @property
    def largest(self) -> Latent:
        return max(self.shapes, key=prod)


def data_of_store(config: RunConfig) -> PlanData:
    """What the recipe's store holds for it.

    Raises:
        Refused: no whole store there.
    """
    store = LatentStore.open(config.data.store)
    clips: Counter[str] = Counter()
    shapes: Counter[Latent] = Counter()
    for group in store.groups:
        clips[group.split] += group.count
        if group.split == config.data.split:
            shapes[group.latent] += group.count
    if not shapes:
        splits = ", ".join(clips) or "none"
        raise Refused("no clips to train on", where=store.place, got=f"splits {splits}", expected=config.data.split)
    notes: list[str] = []
    captions: list[str] = []
    skipped = store.meta["counts"]["skipped"]
    if skipped:
        notes.append(f"{skipped} clips could not be encoded and are not in the store: quarantine.parquet says why")
    for name in clips.keys() - {config.data.split, config.data.validation_split}:
        notes.append(f"split {name} ({clips[name]} clips) is not trained on")
    if config.data.validation_split not in clips:
        notes.append(f"no split {config.data.validation_split}: no held-out loss")
    for name in (config.data.split, config.data.validation_split):
        rows = store.split(name)
        if config.conditions.labels and (missing := int((store.label_numbers(rows.start, len(rows)) < 0).sum())):
            notes.append(f"{missing} of {len(rows)} clips of split {name} have no label: training refuses them")
        if config.conditions.text is not None:
            column = store.column("caption", rows.start, len(rows)).fill_null("")
            counts = {row["values"]: row["counts"] for row in column.value_counts().to_pylist()}
            if missing := counts.pop("", 0):
                notes.append(f"{missing} of {len(rows)} clips of split {name} have no caption: training refuses them")
            captions += counts if name == config.data.split else ()
    return PlanData(dict(shapes), dict(clips), len(store.labels), captions, notes)


def data_as_told(config: RunConfig, latent: Latent | None, labels: int | None) -> PlanData:
    """Data of one latent shape, for a recipe whose store is not there.

    Raises:
        Refused: the shape, or the number of labels that the recipe conditions on, is not told.
    """
    if latent is None:
        raise Refused(
            "no store to plan for", where=config.data.store, expected="a latent store, or the shape of its latents",
            fix="encode first, or say --latent CHANNELxFRAMExHEIGHTxWIDTH",
        )  # fmt: skip
    if config.conditions.labels and labels is None:
        raise Refused("no store to count the labels of", where=config.data.store, fix="say --labels NUMBER")
    notes = [f"no store at {config.data.store}: planned for clips as told; their number and captions are not known"]
    return PlanData({latent: 1}, None, labels or 0, notes=notes)


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
