"""Proving a run: every checkpoint against its manifest, and that training goes on from the newest one bit for bit."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mmdit import files
from mmdit.config import dump_config, parse_config
from mmdit.errors import Refused
from mmdit.training import checkpoint as checkpoints
from mmdit.training.config import RunConfig
from mmdit.training.loop import train

COPY = f"{files.PART}verify"
COMPARED = ("step", "loss", "grad_norm", "lr", "val_loss", "val_noise", "val_labels")


@dataclass(frozen=True)
class RunReport:
    """What was looked at, and what is wrong, a line each."""

    checkpoints: int
    steps: int
    """Steps trained to prove that resuming is exact; 0: not proved."""
    damages: list[str]


def verify_run(folder: Path, steps: int = 3) -> RunReport:
    """Checks the checkpoints of a run, then trains on copies from the newest whole one.

    One copy trains `steps` steps in one go, the other is interrupted after the first and goes on; all weights,
    averages, optimizer states and logged losses must be equal bit for bit. The copies lie in the run's folder, and
    are removed; the run itself stays as it is.

    Args:
        steps: 2 or more; 0 only checks the files.

    Raises:
        Refused: not a run, one that is being trained now, or one whose store is not there.
    """
    if steps == 1 or steps < 0:
        raise Refused("too few steps to interrupt", got=steps, expected="2 or more, or 0 to check the files only")
    found = checkpoints.list_checkpoints(folder)
    if not found:
        raise Refused("no checkpoint", where=folder, expected="a run folder that `mmdit train` wrote")
    with files.lock(folder):
        damages, whole = [], []
        for path in found:
            try:
                checkpoints.verify_checkpoint(path)
                checkpoints.read_state(path)
                whole.append(path)
            except Refused as error:
                damages.append(str(error))
        if not steps or not whole:
            return RunReport(len(found), 0, damages)
        copy = folder / COPY
        shutil.rmtree(copy, ignore_errors=True)
        try:
            damages += _differences_after(folder, whole[-1], copy, steps)
        finally:
            shutil.rmtree(copy, ignore_errors=True)
    return RunReport(len(found), steps, damages)


def _differences_after(folder: Path, checkpoint: Path, copy: Path, steps: int) -> list[str]:
    first = checkpoints.step_of(checkpoint)
    where = folder / "config.yaml"
    if not where.is_file():
        raise Refused("not a whole run", where=folder, got="no config.yaml")
    recipe = parse_config(RunConfig, yaml.safe_load(where.read_text(encoding="utf-8")), where=str(where))
    changes = {
        "steps": max(recipe.steps, first + steps + 1), "checkpoint_every": 1, "validate_every": 1, "log_every": 1,
        "keep_checkpoints": 1, "keep_best": False, "keep_every": None, "keep_hours": None,
        "samples": None, "trackers": (),
    }  # fmt: skip
    recipe = recipe.model_copy(update=changes)
    one, other = copy / "one", copy / "other"
    for run in (one, other):
        _copy_run(folder, checkpoint, run, recipe)
    _train_to(recipe, one, first + steps)
    _train_to(recipe, other, first + 1)
    _train_to(recipe, other, first + steps)
    return _compare(one, other, first)


def _copy_run(folder: Path, checkpoint: Path, run: Path, recipe: RunConfig) -> None:
    """Weights are linked where the disk can: nothing writes into a checkpoint."""
    shutil.copytree(checkpoint, run / "checkpoints" / checkpoint.name, copy_function=_link)
    if (folder / "rows").is_dir():
        shutil.copytree(folder / "rows", run / "rows", copy_function=_link)
    files.write_text(run / "config.yaml", dump_config(recipe))


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


class _Enough(Exception):
    pass


def _train_to(recipe: RunConfig, run: Path, last: int) -> None:
    """Trains until the checkpoint of step `last` is there, and is cut off in the step after."""
    try:
        train(recipe, run, progress=_cut_off_after(last))
    except _Enough:
        return
    raise AssertionError("the recipe has more steps than that")


def _cut_off_after(last: int) -> Callable[[int, int, Any], None]:
    def progress(step: int, *_: object) -> None:
        if step > last:
            raise _Enough

    return progress


def _compare(one: Path, other: Path, first: int) -> list[str]:
    """What differs between two runs, a line each."""
    told = []
    states = [json.loads((checkpoints.find_checkpoint(run) / checkpoints.MANIFEST).read_text()) for run in (one, other)]
    for name in sorted(states[0].keys() | states[1].keys()):
        if states[0].get(name) != states[1].get(name):
            told.append(f"resumed after step {first + 1}, {name} is not what it is without the interruption")
    logs = [_logged(run / "metrics.jsonl") for run in (one, other)]
    for step in sorted(logs[0].keys() | logs[1].keys()):
        if logs[0].get(step) != logs[1].get(step):
            told.append(f"the losses of step {step} differ: {logs[0].get(step)} and, resumed, {logs[1].get(step)}")
    return told


def _logged(metrics: Path) -> dict[int, str]:
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return {line["step"]: json.dumps({name: line.get(name) for name in COMPARED}) for line in lines}
