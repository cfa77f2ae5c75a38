"""What two processes of torchrun do in tests/training/test_processes.py: several runs, one after the other.

Arguments: a folder with `recipe.json`, into which the runs go, and a run of one process, `one`, at step 5.
"""

import atexit
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from mmdit.config import parse_config
from mmdit.errors import Refused, Stopped
from mmdit.pipelines.training_samples import prepare_samples
from mmdit.training import loop
from mmdit.training.config import RunConfig
from mmdit.training.sharding import whole


def main(folder: Path) -> None:
    atexit.register(_write_threads, folder / f"threads-{os.environ['RANK']}.txt")  # after what training registers

    def config(**changes: Any) -> RunConfig:
        values = json.loads((folder / "recipe.json").read_text())
        values["data"]["batch_size"] = changes.pop("batch_size", values["data"]["batch_size"])
        values["data"]["micro_batch"] = changes.pop("micro_batch", None)
        return parse_config(RunConfig, {**values, **changes}, where="the test's recipe")

    loop.train(config(), folder / "two", sample=prepare_samples)
    loop.train(config(micro_batch=1), folder / "parts", sample=prepare_samples)
    loop.train(config(), folder / "one_then_two", sample=prepare_samples)
    _with_a_bad_clip(config(steps=4), folder / "bad", bad_steps=(2,), gradient=False)
    try:
        _with_a_bad_clip(config(steps=4, stop_after_bad_steps=2), folder / "stops", bad_steps=(1, 2), gradient=True)
    except Stopped as error:
        (folder / f"stopped-{PartialState().process_index}.txt").write_text(str(error))
    if PartialState().is_main_process:
        shutil.copytree(folder / "two", folder / "two_then_one")
    try:
        loop.train(config(batch_size=3), folder / "odd", sample=prepare_samples)
    except Refused as error:
        (folder / f"refused-{PartialState().process_index}.txt").write_text(str(error))


def _with_a_bad_clip(config: RunConfig, folder: Path, bad_steps: tuple[int, ...], *, gradient: bool) -> None:
    """The second process's first clip has no finite loss at some steps; each process leaves its weights in the end.

    `gradient`: nor a finite gradient, which then goes to all processes; else only the second can see it.
    """
    plain = loop._losses
    kept: list[Any] = []

    def losses(run: Any, module: Any, batch: Any) -> torch.Tensor:
        values = plain(run, module, batch)
        if torch.is_grad_enabled():
            kept[:] = [run]
            if run.accelerator.process_index == 1 and run.step in bad_steps:
                (folder.parent / "bad_clips.txt").write_text(run.sources.row(batch.places[0])["id"])
                nan = torch.tensor([float("nan"), *[1.0] * (len(values) - 1)])
                return values * nan if gradient else values + nan
        return values

    loop._losses = losses
    try:
        loop.train(config, folder, sample=prepare_samples)
    finally:
        loop._losses = plain
        number = kept[0].accelerator.process_index
        weights = {name: whole(value) for name, value in kept[0].trainee.state_dict().items()}
        torch.save(weights, folder.parent / f"{folder.name}-{number}.pt")


def _write_threads(path: Path) -> None:
    path.write_text("".join(thread.read_text() for thread in Path("/proc/self/task").glob("*/comm")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
