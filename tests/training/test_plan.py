"""A plan says what is known of a run, and what would make it fit."""

from typing import Any

import pytest

from mmdit.config import load_config
from mmdit.errors import Refused
from mmdit.latents.store import LatentStore
from mmdit.training import plan as plan_module
from mmdit.training.checkpoint import find_checkpoint
from mmdit.training.config import RunConfig
from mmdit.training.devices import Device
from mmdit.training.loop import train
from mmdit.training.plan import plan_run
from mmdit.training.plan_data import PlanData, data_as_told, data_of_store


def small(*changes: str) -> tuple[RunConfig, PlanData]:
    config = load_config(RunConfig, "debug", ["conditions.text=null", "model.depth=3", *changes])
    return config, data_as_told(config, (4, 4, 32, 32), 5)


def test_a_run_is_planned_from_its_store(recipe: Any, tmp_path: Any) -> None:
    config = recipe(steps=2, checkpoint_every=2)
    data = data_of_store(config)
    half = config.model_copy(update={"precision": "bfloat16"})
    plan = plan_run(half, data, gpu="h100", gpus=2, share=0.5)
    store = LatentStore.open(config.data.store)
    assert plan.clips is not None and plan.seconds is not None
    assert plan.clips == store.meta["counts"]["splits"]
    assert plan.epochs == 2 * 4 / plan.clips["train"]
    assert plan.flops_per_step == 6 * plan.macs_per_clip * 4
    assert plan.clips_per_device == 2 and plan.fits and not plan.advice
    train(config, tmp_path)
    state = find_checkpoint(tmp_path)
    tensors = sum(path.stat().st_size for path in state.rglob("*.safetensors"))
    assert plan.checkpoint_bytes == pytest.approx(tensors, rel=0.25)  # small files are half headers
    faster = plan_run(half, data, gpu="h100", gpus=4, share=0.5)
    assert faster.seconds == pytest.approx(plan.seconds / 2)


def test_what_would_fit_is_told_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = small("data.batch_size=16", "precision=bfloat16")
    whole = plan_run(config, data, gpu="h100")
    usable = int(whole.memory["peak"] * 0.7 / plan_module.USABLE)
    tight = Device("tight", 1e12, usable)
    monkeypatch.setattr(plan_module, "find_device", lambda name: tight)
    plan = plan_run(config, data, gpu="tight")
    assert not plan.fits and plan.advice == [f"data.micro_batch={plan.largest_micro_batch}"]
    config, _ = small("data.batch_size=16", "precision=bfloat16", *plan.advice)
    assert plan_run(config, data, gpu="tight").fits
    config, _ = small("data.batch_size=16", "precision=bfloat16", f"data.micro_batch={plan.largest_micro_batch + 1}")
    assert not plan_run(config, data, gpu="tight").fits
    monkeypatch.setattr(plan_module, "find_device", lambda name: Device("tiny", 1e12, 1000))
    assert plan_run(config, data, gpu="tiny").advice[0].startswith("a smaller network")


def test_checkpointing_costs_time_and_saves_memory() -> None:
    plans = [plan_run(*small(f"model.checkpointing={n}"), gpu="a100", share=0.3) for n in (0, 1)]
    assert plans[1].memory["activations"] < plans[0].memory["activations"] / 2
    assert plans[0].seconds is None  # float32
    times = [plan_run(*small("precision=bfloat16", f"model.checkpointing={n}"), gpu="a100").seconds for n in (0, 1)]
    assert times[0] is not None
    assert times[1] == pytest.approx(times[0] * 8 / 6)


def test_what_is_not_known_is_refused() -> None:
    config, data = small()
    with pytest.raises(Refused, match="unknown device.*h300.*H200"):
        plan_run(config, data, gpu="h300")
    with pytest.raises(Refused, match="does not divide over the devices"):
        plan_run(config, data, gpu="h200", gpus=3)
    with pytest.raises(Refused, match="no store to plan for.*--latent"):
        data_as_told(config, None, 5)
    with pytest.raises(Refused, match="count the labels.*--labels"):
        data_as_told(config, (4, 1, 8, 8), None)
