"""Checkpoints: a folder that is whole or is not there, with the hash of each file in it.

checkpoints/step-0001500/
    transformer/  text_encoder/  tokenizer/     the weights as trained (diffusers and transformers folders)
    ema/transformer/  ema/text_encoder/         their moving average
    optimizer.safetensors                       state of all optimizers; where processes held it in parts (sharding),
    optimizer/shard-00000-of-00002.safetensors  what each of them held, in place of it
    state.json                                  step, label names, codec, shape of the clips, counters
    manifest.json                               size and sha256 of every file, written last

A LoRA run has adapters and a base in place of the weights: mmdit/training/lora.py.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch.optim import Optimizer

from mmdit import __version__, files
from mmdit.errors import Refused
from mmdit.training.data_files import check_data_file
from mmdit.training.eight_bit import from_plain, to_plain
from mmdit.training.shards import read_shards, shapes_in

FORMAT = 1
MANIFEST = "manifest.json"
FALLBACK = "use --fallback for the checkpoint before"


def checkpoint_path(run_folder: Path, step: int) -> Path:
    return run_folder / "checkpoints" / f"step-{step:07d}"


def list_checkpoints(run_folder: Path) -> list[Path]:
    """The run's checkpoints, oldest first."""
    found = [
        path for path in (run_folder / "checkpoints").glob("step-*") if path.name.removeprefix("step-").isdecimal()
    ]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps done, as the folder's name has it."""
    return int(checkpoint.name.removeprefix("step-"))


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
    """state.json of a checkpoint; Refused when it cannot be read, or a newer mmdit wrote it."""
    path = checkpoint / "state.json"
    try:
        state: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        newer = int(state["format"]) > FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refused(
            "not a checkpoint's state", where=path, got=f"{type(error).__name__}: {error}", fix=FALLBACK
        ) from None
    if newer:
        raise Refused(
            "the checkpoint is of a newer format", where=checkpoint,
            got=f"format {state['format']} of mmdit {state.get('mmdit', 'unknown')}",
            expected=f"at most format {FORMAT}, which mmdit {__version__} reads", fix="update mmdit",
        )  # fmt: skip
    return state


def write_manifest(folder: Path) -> None:
    """Lists size and sha256 of every file below `folder` in its manifest.json."""
    listed = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    files.write_json(folder / MANIFEST, listed)


def verify_checkpoint(folder: Path) -> None:
    """Compares every file with the manifest; Refused naming the first that differs, is not listed or is no data file.

    Nothing is loaded: a file whose hash is right may still come from a stranger, so that what could run code and
    headers that would fill the memory are refused too.
    """
    listed = _read_manifest(folder)
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    for name in sorted(listed.keys() - found):
        raise Refused("a file of the checkpoint is missing", where=folder / name, fix=FALLBACK)
    for name in sorted(found - listed.keys()):
        raise Refused("a file that the checkpoint does not list", where=folder / name, fix="remove it")
    for name, wanted in listed.items():
        path = folder / name
        if path.stat().st_size != wanted["size"]:
            got, expected = f"{path.stat().st_size} bytes", f"{wanted['size']}"
        elif (sha256 := _sha256(path)) != wanted["sha256"]:
            got, expected = f"sha256 {sha256[:16]}", wanted["sha256"][:16]
        else:
            check_data_file(path)
            continue
        raise Refused("a file of the checkpoint is damaged", where=path, got=got, expected=expected, fix=FALLBACK)


def _read_manifest(folder: Path) -> dict[str, dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise Refused("not a whole checkpoint", where=folder, got=f"no {MANIFEST}", fix=FALLBACK)
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"size": int(about["size"]), "sha256": str(about["sha256"])} for name, about in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused("a file of the checkpoint is damaged", where=path, got=str(error), fix=FALLBACK) from None


def optimizer_tensors(optimizers: list[Optimizer]) -> dict[str, torch.Tensor]:
    """The state of all optimizers as flat tensors "OPTIMIZER.PARAMETER.KEY"."""
    return {
        f"{number}.{parameter}.{key}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for parameter, state in optimizer.state_dict()["state"].items()
        for key, value in to_plain(state).items()
    }


def load_optimizers(optimizers: list[Optimizer], checkpoint: Path) -> None:
    """Gives the state that `optimizer_tensors` took back to optimizers of the same build, on any number of processes.

    Raises:
        Refused: its parts are not sound, or of another network.
    """
    folder = checkpoint / "optimizer" if (checkpoint / "optimizer").is_dir() else checkpoint
    weights = [[weight for group in o.param_groups for weight in group["params"]] for o in optimizers]
    tensors = {}
    for name, about in shapes_in(folder).items():
        if not name[0].isdecimal():
            continue  # of a LoRA, whose adapters lie in the same folder
        try:
            number, parameter, _ = name.split(".", 2)
            weight = weights[int(number)][int(parameter)]
        except (ValueError, IndexError):
            raise Refused("state of another optimizer", where=folder, got=name, fix=FALLBACK) from None
        eight_bit = name.endswith((".scale", ".qmap"))
        if about.size not in (weight.shape, torch.Size()) and not eight_bit:  # a step would write past their ends
            raise Refused("state of another optimizer", where=folder, got=f"{name} {tuple(about.size)}",
                          expected=f"{tuple(weight.shape)}, or one number", fix=FALLBACK)  # fmt: skip
        dtype = about.properties.dtype
        same = about.size == weight.shape
        tensors[name] = torch.empty_like(weight, dtype=dtype) if same else torch.empty(about.size, dtype=dtype)
    read_shards(folder, tensors)
    states: list[dict[int, dict[str, torch.Tensor]]] = [{} for _ in optimizers]
    for name, value in tensors.items():
        number, parameter, key = name.split(".", 2)
        states[int(number)].setdefault(int(parameter), {})[key] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        whole = {parameter: from_plain(plain) for parameter, plain in state.items()}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": whole})


def _sha256(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
