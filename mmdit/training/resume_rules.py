"""What may differ between a run and its continuation: every key of the recipe has a class here."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mmdit.config import parse_config
from mmdit.errors import Refused
from mmdit.training import checkpoint as checkpoints
from mmdit.training.config import RunConfig
from mmdit.training.precision import quick_precision

log = logging.getLogger("mmdit.training")

# Another value would be another run.
MUST_MATCH = {
    "seed", "steps", "precision", "ema_decay",
    "data.split", "data.batch_size", "data.image_share",
    "data.sources", "data.sources.share", "data.batch_by", "data.batch_multiple",
    "data.videos.frames", "data.videos.size", "data.videos.bucket", "data.videos.token_budget", "data.videos.fps",
    "data.videos.stride", "data.videos.windows", "data.videos.window_step", "data.videos.flip", "data.videos.kind",
    "data.videos.caption_from", "data.videos.labels", "data.videos.no_caption", "data.videos.bad_captions",
    "data.videos.max_caption", "data.videos.batch", "data.videos.dtype", "data.videos.precision",
    "data.videos.tiling", "data.videos.reader",
    "conditions.labels", "conditions.drop_label", "conditions.drop_text", "conditions.given_frames",
    "conditions.text", "conditions.text.encoder",
    "conditions.text.width", "conditions.text.depth", "conditions.text.heads", "conditions.text.max_tokens",
    "model.network",
    "model.preset", "model.depth", "model.hidden_size", "model.num_heads", "model.patch_size", "model.mlp_ratio",
    "model.layout", "model.positions", "model.norm", "model.mlp", "model.qk_norm",
    "model.conditioning", "model.text_tokens_by", "model.interpolate", "model.timestep_spacing",
    "flow", "flow.times", "flow.shift", "flow.mean", "flow.scale", "flow.mode",
    "diffusion", "diffusion.betas", "diffusion.prediction", "diffusion.variance", "diffusion.min_snr",
    "diffusion.zero_terminal_snr", "diffusion.timesteps",
    "lora", "lora.rank", "lora.alpha", "lora.targets",
    "optimizer.lr", "optimizer.adamw", "optimizer.muon_lr", "optimizer.muon_rounds", "optimizer.betas",
    "optimizer.weight_decay",
    "optimizer.warmup", "optimizer.decay", "optimizer.clip_norm",
}  # fmt: skip
# What is written when, and by which kernel the same numbers are computed: a change is logged.
MAY_CHANGE = {
    "log_every", "validate_every", "validation_clips", "checkpoint_every", "keep_checkpoints", "keep_best",
    "keep_every", "stop_after_bad_steps", "data.validation_split", "data.micro_batch", "model.attention_backend",
    "model.checkpointing", "data.repeat", "data.workers",
    "compile", "ema_device", "sharding", "keep_hours",
    "samples", "samples.every", "samples.prompts", "samples.labels", "samples.count", "samples.steps",
    "samples.guidance", "trackers",
}  # fmt: skip
# What may have moved: rows, captions, labels and the codec's weights are compared, not their paths, and a run goes on
# from videos where it was begun from a store of them. How they are read changes no result. `init_from` is read when a
# run begins, and never again.
IGNORED = {
    "data.store", "data.videos", "data.videos.source", "data.videos.captions", "data.videos.label_names",
    "data.videos.codec", "data.videos.workers", "data.videos.deadline", "init_from", "init_weights",
}  # fmt: skip


def rule_of(key: str) -> str:
    """The key that stands in the tables for a dotted key: what a source has, is as what the one source has."""
    return key if key == "data.sources.share" else key.replace("data.sources.", "data.")


def begun_with(folder: Path) -> RunConfig | None:
    """The recipe of the run in `folder`; None where nothing of it was saved yet.

    Raises:
        Refused: a newer mmdit wrote it, or its recipe cannot be read.
    """
    path = folder / "config.yaml"
    if not os.path.isfile(path) or not (found := checkpoints.list_checkpoints(folder)):  # false for a name too long
        return None
    for checkpoint in found:
        if (checkpoint / "state.json").is_file():
            _check_format(checkpoint)
    return parse_config(RunConfig, yaml.safe_load(path.read_text(encoding="utf-8")), where=str(path))


def with_precision(config: RunConfig, folder: Path) -> RunConfig:
    """The recipe with the precision "auto" replaced: by what the run in `folder` was begun with, so that it goes on the
    same on any machine, or else by what this device is quick at."""
    if config.precision != "auto":
        return config
    begun = begun_with(folder)
    precision = quick_precision() if begun is None or begun.precision == "auto" else begun.precision
    log.info("precision: %s", precision)
    return config.model_copy(update={"precision": precision})


def check_same_recipe(config: RunConfig, folder: Path) -> None:
    """Refused where `folder` holds a run that was begun with another recipe; the key and both values are named.

    A folder that a newer mmdit wrote is refused as that. Keys that may change are logged where they do; a key without
    a class must match.
    """
    old = begun_with(folder)
    if old is None:
        return
    if old.precision == "auto":  # kept so by mmdit before 2026-12
        old = old.model_copy(update={"precision": quick_precision()})
    changed = list(differences(old.model_dump(mode="json"), config.model_dump(mode="json")))
    may_change = MAY_CHANGE
    if config.optimizer.decay == "constant":  # else the learning rates of the steps done were those of another end
        may_change = MAY_CHANGE | {"steps"}
    for key, was, now in changed:
        if rule_of(key) not in may_change | IGNORED:
            raise Refused(
                "the recipe is not the one that this run was begun with",
                where=folder,
                got=f"{key}={now}",
                expected=f"{key}={was}",
                fix="set it back, or train into another folder",
            )
    for key, was, now in changed:
        if rule_of(key) in may_change:
            log.warning("the run goes on with %s=%s, and was begun with %s=%s", key, now, key, was)


def _check_format(checkpoint: Path) -> None:
    """Only the format; what else is wrong with a checkpoint is found where it is verified."""
    try:
        checkpoints.read_state(checkpoint)
    except Refused as error:
        if "newer format" in str(error):
            raise


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every leaf that differs; the tables of a list have the list's key."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for name in old:
            yield from differences(old[name], new[name], f"{key}.{name}" if key else name)
    elif (
        isinstance(old, list)
        and isinstance(new, list)
        and len(old) == len(new)
        and all(isinstance(part, dict) for part in old)
    ):
        for was, now in zip(old, new, strict=True):
            yield from differences(was, now, key)
    elif old != new:
        yield key, old, new


def _are_tables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(part, dict) for part in value)
