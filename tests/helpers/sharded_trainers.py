"""What two processes do in tests/training/test_sharding.py: several runs, one after the other.

Argument: a folder with `recipe.json`, into which the runs go; in it `chain`, a run of one process at step 3, and
`source`, a run to start another from.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch._dynamo.testing import CompileCounter

from mmdit.config import parse_config
from mmdit.errors import Refused, Stopped
from mmdit.training.config import RunConfig
from mmdit.training.loop import train


def main(folder: Path) -> None:
    def config(**changes: Any) -> RunConfig:
        values = json.loads((folder / "recipe.json").read_text())
        for key in [key for key in changes if "__" in key]:
            section, name = key.split("__")
            values[section][name] = changes.pop(key)
        return parse_config(RunConfig, {**values, "sharding": "full", **changes}, where="the test's recipe")

    def train_to(last: int, recipe: RunConfig, run: Path) -> None:
        try:
            train(recipe, run, progress=lambda step, *_: os.kill(os.getpid(), signal.SIGTERM) if step == last else None)
        except Stopped as error:
            assert "asked to stop" in str(error), error
        PartialState().wait_for_everyone()  # both have let go of the folder

    train_to(5, config(), folder / "chain")
    train_to(7, config(sharding="none"), folder / "chain")
    train_to(3, config(sharding="none"), folder / "back")
    train_to(6, config(), folder / "back")
    train(config(init_from=str(folder / "source"), steps=2), folder / "begun")
    train(config(precision="bfloat16", data__micro_batch=1, model__checkpointing=1), folder / "bfloat16")
    counter, plain = CompileCounter(), torch.compile
    setattr(torch, "compile", lambda module: plain(module, backend=counter))  # noqa: B010  mypy
    train(config(compile=True, data__image_share=0.0, steps=2), folder / "compiled")
    torch.compile = plain
    said: dict[str, Any] = {"compiled": counter.frame_count}
    for name, change in (("muon", {"optimizer__muon_lr": 0.1}), ("float16", {"precision": "float16"})):
        try:
            train(config(**change), folder / name)
        except Refused as error:
            said[name] = str(error)
    if os.environ["RANK"] == "1":
        os.environ["MMDIT_FAULT"] = (
            "full@shard-00001-of-00002.safetensors:begin#4"  # the second checkpoint's; each has three groups
        )
    try:
        train(config(checkpoint_every=1), folder / "full")
    except Stopped as error:
        said["full"] = str(error)
    (folder / f"said-{os.environ['RANK']}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
