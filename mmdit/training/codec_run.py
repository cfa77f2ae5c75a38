"""A codec's run between two steps, and how it is put away and taken up: one file, so that one rename makes it whole."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

from mmdit import files
from mmdit.config import dump_config, parse_config
from mmdit.training.codec_recipe import CodecRecipe, may_go_on
from mmdit.training.ema import EMA


@dataclass
class CodecRun:
    """All that a run is made of between two steps."""

    vae: Any
    ema: EMA
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def save_run(run: CodecRun, folder: Path) -> None:
    """Writes checkpoint.safetensors (weights, averages, optimizers, step) and metrics.jsonl."""
    tensors = {f"vae.{name}": weight for name, weight in run.vae.state_dict().items()}
    tensors |= {f"ema.{name}": weight for name, weight in run.ema.averages.items()}
    for number, optimizer in enumerate(run.optimizers):
        for slot, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{slot}.{name}": value for name, value in state.items()}
    facts = {"step": run.step, "seconds": run.seconds, "history": run.history}
    files.write_safetensors(folder / "checkpoint.safetensors", tensors, {"run": json.dumps(facts)})
    files.write_text(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in run.history))


def resume_run(run: CodecRun, recipe: CodecRecipe, folder: Path) -> None:
    """Takes up the run in the folder, if there is one, and notes the recipe in recipe.yaml.

    Raises:
        Refused: the run there was begun with a recipe that this one does not go on from.
    """
    path, noted = folder / "checkpoint.safetensors", folder / "recipe.yaml"
    if path.is_file():
        with safe_open(path, "pt") as stored:
            facts = json.loads(stored.metadata()["run"])
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        before = parse_config(CodecRecipe, yaml.safe_load(noted.read_text(encoding="utf-8")), where=str(noted))
        may_go_on(recipe, before, facts["step"], folder)
        run.step, run.seconds, run.history = facts["step"], facts["seconds"], facts["history"]
        run.vae.load_state_dict({name[4:]: value for name, value in tensors.items() if name.startswith("vae.")})
        run.ema.load({name[4:]: value for name, value in tensors.items() if name.startswith("ema.")})
        for number, optimizer in enumerate(run.optimizers):
            plan = optimizer.state_dict()
            for name, value in tensors.items():
                if name.startswith(f"optimizer.{number}."):
                    _, _, slot, key = name.split(".")
                    plan["state"].setdefault(int(slot), {})[key] = value
            optimizer.load_state_dict(plan)
    files.write_text(noted, dump_config(recipe))
