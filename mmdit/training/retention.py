"""Which checkpoints stay: the newest, the recent, the best by held-out loss, and every n-th."""

import json
import math
from pathlib import Path

from mmdit import files
from mmdit.errors import Refused
from mmdit.training import checkpoint as checkpoints
from mmdit.training.config import RunConfig
from mmdit.training.run import Run


def check_retention(run: Run) -> None:
    """Refused where the best checkpoint is to be kept and checkpoints are written without a held-out loss."""
    config = run.config
    if config.keep_best and "validation" not in run.splits:
        raise Refused(
            "keep_best needs a held-out loss at every checkpoint",
            got=f"no split {config.data.validation_split!r} in the data", expected="validation clips",
            fix="encode some with that split, or set keep_best=false",
        )  # fmt: skip
    if config.keep_best and config.checkpoint_every % config.validate_every:
        raise Refused(
            "keep_best needs a held-out loss at every checkpoint",
            got=f"validate_every={config.validate_every}, checkpoint_every={config.checkpoint_every}",
            expected="checkpoint_every a multiple of validate_every",
        )


def remove_old(run_folder: Path, config: RunConfig) -> None:
    """Removes the checkpoints that the recipe does not keep, once the newest verifies."""
    found = checkpoints.list_checkpoints(run_folder)
    kept = kept_checkpoints(found, config, held_out_losses(run_folder / "metrics.jsonl"))
    old = [path for path in found if path not in kept]
    if old:
        checkpoints.verify_checkpoint(found[-1])
    for path in old:
        files.remove_folder(path)


def kept_checkpoints(found: list[Path], config: RunConfig, losses: dict[int, float]) -> set[Path]:
    """Which of the checkpoints (oldest first) stay, given held-out losses by step."""
    kept = set(found[-config.keep_checkpoints :])
    if config.keep_every is not None:
        kept |= {path for path in found if checkpoints.step_of(path) % config.keep_every == 0}
    if config.keep_hours is not None:
        since = _written(found[-1]) - 3600 * config.keep_hours
        kept |= {path for path in found if _written(path) >= since}
    measured = [path for path in found if math.isfinite(losses.get(checkpoints.step_of(path), math.nan))]
    if config.keep_best and measured:
        kept.add(min(measured, key=lambda path: losses[checkpoints.step_of(path)]))
    return kept


def _written(checkpoint: Path) -> float:
    """When, in seconds; a damaged one without its manifest is as old as can be."""
    manifest = checkpoint / checkpoints.MANIFEST
    return manifest.stat().st_mtime if manifest.is_file() else 0.0


def held_out_losses(metrics: Path) -> dict[int, float]:
    """Step -> held-out loss, from metrics.jsonl."""
    if not metrics.is_file():
        return {}
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").split("\n")[:-1]]
    return {line["step"]: line["val_loss"] for line in lines if line.get("val_loss") is not None}
