"""Comparing, damaging and re-signing runs."""

import json
from pathlib import Path
from typing import Any

from mmdit.training.checkpoint import find_checkpoint, write_manifest

SAME = ("step", "loss", "grad_norm", "lr", "val_loss")


def state_of(run: Path) -> tuple[str, list[dict[str, Any]]]:
    """What two runs that are the same have alike: every file of the last checkpoint, and every logged loss."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = [{name: line[name] for name in SAME if name in line} for line in lines]
    return (find_checkpoint(run) / "manifest.json").read_text(), logged


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def change_state(checkpoint: Path, **changes: Any) -> None:
    """Writes other values into state.json, with a manifest that fits."""
    path = checkpoint / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    sign(checkpoint)


def sign(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()
    write_manifest(checkpoint)
