"""The memory that a plan says a step takes is what it takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdit.config import parse_config
from mmdit.training import loop
from mmdit.training.build import Inputs
from mmdit.training.config import RunConfig
from mmdit.training.ema import EMA
from mmdit.training.loop import train
from mmdit.training.memory import StepInputs, measure_step, memory_cases, trace_step

CASES = {name: rest for name, *rest in memory_cases(depth=2)}
BOUND = 0.03


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_what_the_allocator_gave_out(name: str) -> None:
    config, inputs, precision = CASES[name]
    traced = trace_step(config, inputs, precision, on_gpu=False)
    for micro in (3, 2):  # at once, and in parts of two and one
        planned = traced.peak(3, micro)
        measured = measure_step(config, inputs, precision, share=3, micro_batch=micro)
        assert planned == pytest.approx(measured, rel=BOUND)


def test_it_is_what_a_run_takes(recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of `train` itself, text encoder and Muon included: from the begin of the backward pass to the averages."""
    config = recipe(model__hidden_size=256, data__image_share=0.0, data__batch_size=8, data__micro_batch=8, steps=3)
    plain, update = loop._backward, EMA.update
    runs: list[Any] = []
    profiles: list[Any] = []

    def backward(run: Any, batch: Any) -> Any:
        if run.step == 1:  # the optimizers have their state
            runs.append(run)
            profiles.append(
                torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
            )
            profiles[0].__enter__()
        return plain(run, batch)

    def end(*given: Any) -> None:
        update(*given)
        if profiles and len(runs) == 1:
            runs.append(None)
            profiles[0].__exit__(None, None, None)

    monkeypatch.setattr(loop, "_backward", backward)
    monkeypatch.setattr(EMA, "update", end)
    train(config, tmp_path)
    events = [event for event in profiles[0].profiler.kineto_results.events() if event.name() == "[memory]"]
    held = np.cumsum([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
    run = runs[0]
    inputs = StepInputs(
        Inputs(run.pool.latent, len(run.sources.labels), run.trainee.text_encoder.dim),
        run.splits["train"].texts.tokens, run.trainee.text_encoder,
    )  # fmt: skip
    planned = trace_step(config, inputs, "float32", on_gpu=False)
    passing = max(int(line.at(8).max()) for line in (planned.first, planned.update))
    assert passing == pytest.approx(int(held.max()), rel=0.1)


def test_what_a_gpu_keeps_is_told_apart() -> None:
    """Norms in float32 under autocast take more there, also where blocks are computed again; float32 takes the same."""
    for checkpointing in (0, 1):
        values: dict[str, Any] = {"steps": 1, "data": {"store": ""}, "ema_device": "cpu"}
        config = parse_config(RunConfig, values | {"model": {"depth": 2, "checkpointing": checkpointing}}, where="")
        inputs = StepInputs(Inputs((4, 3, 16, 16)))
        cpu, gpu = (trace_step(config, inputs, "bfloat16", on_gpu=on) for on in (False, True))
        assert gpu.peak(8, 8) + cpu.averages > cpu.peak(8, 8) and gpu.averages == 0 < cpu.averages
        plain = [trace_step(config, inputs, "float32", on_gpu=on) for on in (False, True)]
        assert plain[0].peak(8, 8) - plain[0].averages == plain[1].peak(8, 8)
