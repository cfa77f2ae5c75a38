"""Checkpoints: a folder that is whole or is not there, with the hash of each file in it.

checkpoints/step-0001500/
    transformer/  text_encoder/  tokenizer/     the weights as trained (diffusers and transformers folders)
    ema/transformer/  ema/text_encoder/         their moving average
    optimizer.safetensors                       state of all optimizers
    state.json                                  step, label names, codec, shape of the clips, counters
    manifest.json                               size and sha256 of every file, written last
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.optim import Optimizer

from mmdit import files
from mmdit.errors import Refused

FORMAT = 1


def checkpoint_path(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step-{step:07d}"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    return sorted((run_folder / "checkpoints").glob("step-*"))


def find_checkpoint(run_folder: Path, *, fallback: bool = False) -> Path:
    """The newest checkpoint of a run, verified.

    Args:
        fallback: when the newest is damaged, take the newest one that is not.

    Raises:
        Refused: there is none, or the newest is damaged (the file is named).
    """
    checkpoints = list_checkpoints(run_folder)
    if not checkpoints:
        raise Refused("no checkpoint", where=run_folder, expected="a run folder that `mmdit train` wrote")
    for number, path in enumerate(reversed(checkpoints)):
        try:
            verify_checkpoint(path)
        except Refused:
            if not fallback or number == len(checkpoints) - 1:
                raise
        else:
            return path
    raise AssertionError("the loop returns or raises")


def read_state(checkpoint: Path) -> dict[str, Any]:
    """state.json of a checkpoint; Refused when a newer mmdit wrote it."""
    state: dict[str, Any] = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    if state["format"] > FORMAT:
        raise Refused(
            "the checkpoint is of a newer format", where=checkpoint, got=state["format"], expected=f"at most {FORMAT}",
            fix="update mmdit",
        )  # fmt: skip
    return state


def write_manifest(folder: Path) -> None:
    """Lists size and sha256 of every file below `folder` in its manifest.json."""
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files.write_json(folder / "manifest.json", listed)


def verify_checkpoint(folder: Path) -> None:
    """Compares every file with the manifest; Refused naming the first that differs."""
    manifest = folder / "manifest.json"
    if not manifest.is_file():
        raise Refused("not a whole checkpoint", where=folder, got="no manifest.json")
    for name, wanted in json.loads(manifest.read_text(encoding="utf-8")).items():
        path = folder / name
        if not path.is_file():
            raise Refused("a file of the checkpoint is missing", where=path, fix="use --fallback for the one before")
        if path.stat().st_size != wanted["size"] or _sha256(path) != wanted["sha256"]:
            raise Refused(
                "a file of the checkpoint is damaged", where=path, got="another sha256", expected=wanted["sha256"][:16],
                fix="use --fallback for the checkpoint before",
            )  # fmt: skip


def optimizer_tensors(optimizers: list[Optimizer]) -> dict[str, torch.Tensor]:
    """The state of all optimizers as flat tensors "OPTIMIZER.PARAMETER.KEY"."""
    return {
        f"{number}.{parameter}.{key}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for key, value in state.items()
    }


def load_optimizers(optimizers: list[Optimizer], path: Path) -> None:
    """Gives the state that `optimizer_tensors` took back to optimizers of the same build."""
    states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    for name, value in load_file(path).items():
        number, parameter, key = name.split(".", 2)
        states[int(number)].setdefault(int(parameter), {})[key] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def keep_newest(run_folder: Path, count: int) -> None:
    """Removes all but the newest `count` checkpoints, once the newest verifies."""
    checkpoints = list_checkpoints(run_folder)
    if len(checkpoints) > count:
        verify_checkpoint(checkpoints[-1])
        for old in checkpoints[:-count]:
            gone = old.with_name(
                f"{files.PART}{old.name}"
            )  # renamed first: half a folder is never seen as a checkpoint
            old.rename(gone)
            shutil.rmtree(gone)


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
