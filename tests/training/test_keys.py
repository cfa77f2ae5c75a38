"""Every key of a run, its data, conditions and optimizer does something; those of the network: test_build.py."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from safetensors.torch import load_file

from mmdit.errors import Refused
from mmdit.training.checkpoint import list_checkpoints
from mmdit.training.config import ConditionConfig, DataConfig, OptimizerConfig, RunConfig, TextConfig
from mmdit.training.loop import train
from mmdit.training.meter import TIMED

# For each key another value, by its name in the recipe of the fixture. The refused ones do something too.
CHANGES: dict[str, Any] = {
    "seed": 1,
    "steps": 5,
    "precision": "bfloat16",
    "data__store": "nowhere",
    "data__split": "test",
    "data__validation_split": "train",
    "data__batch_size": 3,
    "data__image_share": 0.9,
    "conditions__given_frames": {"first": 1.0},
    "conditions__labels": False,
    "conditions__text": None,
    "conditions__drop_label": 0.9,
    "conditions__drop_text": 0.9,
    "conditions__text__encoder": "nowhere/at/all",
    "conditions__text__width": 24,
    "conditions__text__depth": 2,
    "conditions__text__heads": 1,
    "conditions__text__max_tokens": 4,
    "optimizer__lr": 2e-3,
    "optimizer__muon_lr": None,
    "optimizer__muon_rounds": 2,
    "optimizer__betas": (0.5, 0.6),
    "optimizer__weight_decay": 0.5,
    "optimizer__warmup": 0,
    "optimizer__decay": "cosine",
    "optimizer__clip_norm": 1e-3,
    "ema_decay": 0.1,
    "log_every": 2,
    "validate_every": 2,
    "validation_clips": 1,
    "checkpoint_every": 1,
    "keep_checkpoints": 1,
}
ELSEWHERE: dict[str, type[BaseModel]] = {
    "data": DataConfig,
    "conditions": ConditionConfig,
    "conditions__text": TextConfig,
    "optimizer": OptimizerConfig,
}
# What other tests see: test_build.py; test_loop.py; test_micro.py and others, where nothing but time or room changes;
# test_retention.py; test_init_from.py; test_sources.py and test_loader.py; test_trackers.py;
# test_sharding.py; test_videos.py; test_lora.py; test_eight_bit.py; tests/pipelines/test_training_samples.py.
NOT_HERE = {
    "model", "flow", "diffusion", "stop_after_bad_steps", "data__micro_batch", "compile", "ema_device", "keep_best",
    "keep_every", "init_from", "init_weights", "samples", "trackers",
    "data__batch_by", "data__batch_multiple", "data__repeat", "data__workers", "data__sources", "lora",
    "optimizer__adamw", "keep_hours", "sharding", "data__videos",
}  # fmt: skip


def seen(config: RunConfig, folder: Path) -> Any:
    """What a run leaves: its log, its checkpoints, and the weights in the last one; or the refusal."""
    try:
        train(config, folder)
    except Refused as refusal:
        return str(refusal)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = list_checkpoints(folder)
    sums = {}
    for name in ("transformer", "ema/transformer"):
        weights = load_file(kept[-1] / name / "diffusion_pytorch_model.safetensors")
        sums[name] = {key: torch.sum(value, dtype=torch.float64).item() for key, value in weights.items()}
    return [{k: v for k, v in line.items() if k not in TIMED} for line in log], [path.name for path in kept], sums


def test_every_key_is_in_the_table() -> None:
    keys = set(RunConfig.model_fields) - NOT_HERE - set(ELSEWHERE)
    for section, kind in ELSEWHERE.items():
        keys |= {f"{section}__{key}" for key in kind.model_fields}
    assert keys - NOT_HERE == set(CHANGES)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return {}


@pytest.mark.parametrize("key", CHANGES)
def test_each_key_changes_what_a_run_leaves(key: str, recipe: Any, plain: dict[str, Any], tmp_path: Path) -> None:
    base = {"steps": 4, "optimizer__decay": "linear"}
    if not plain:
        plain["seen"] = seen(recipe(**base), tmp_path / "plain")
    changed = {**base, key: CHANGES[key]}
    if key == "data__store":
        changed[key] = str(tmp_path / "nowhere")
    if key == "conditions__text":
        changed["conditions__drop_text"] = 0.1
    if key == "conditions__text__encoder":
        changed["conditions__text"] = {"encoder": str(tmp_path / "nowhere")}
        del changed[key]
    assert seen(recipe(**changed), tmp_path / "run") != plain["seen"]
