"""Each figure of the log means what it says."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.utils.flop_counter import FlopCounterMode

from mmdit.models import create_model
from mmdit.training import loop, meter
from mmdit.training.loop import train
from mmdit.training.meter import TIMED, Meter


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def make_network() -> Any:
    return create_model(
        "tiny", sample_size=(3, 4, 6), in_channels=4, patch_size=(1, 2, 2), layout="factorized",
        attention_backend="math",
    )  # fmt: skip


def run_steps(meter: Meter, clock: Clock, *shapes: tuple[int, ...]) -> None:
    """Steps of 2 seconds, half a second of which is the wait for the batch, and 7 seconds of something else after."""
    for shape in shapes:
        meter.begin()
        clock.now += 0.5
        meter.got_batch()
        clock.now += 1.5
        meter.end(torch.Size(shape))
        clock.now += 7


def test_speeds_are_of_the_steps_alone() -> None:
    network, clock = make_network(), Clock()
    measured = Meter(network.config, None, clock)
    run_steps(measured, clock, (8, 4, 3, 4, 6), (8, 4, 1, 4, 6))
    line = measured.line(Accelerator(cpu=True))
    assert line["clips_per_s"] == 4.0
    assert line["tokens_per_s"] == 8 * (3 + 1) * 2 * 3 / 4
    assert line["data_wait_share"] == 0.25
    assert "peak_share" not in line
    run_steps(measured, clock, (2, 4, 1, 4, 6))
    assert measured.line(Accelerator(cpu=True))["clips_per_s"] == 1.0  # since the last line, not since the beginning


@pytest.mark.parametrize("frames", [1, 3])
def test_model_flops_are_those_of_forward_and_backward(frames: int) -> None:
    network, clock = make_network(), Clock()
    latents = torch.randn(2, 4, frames, 4, 6)
    with FlopCounterMode(display=False) as counted:
        network(latents.requires_grad_(), torch.tensor([5.0, 7.0])).sum().backward()
    measured = Meter(network.config, 1e9, clock)
    run_steps(measured, clock, tuple(latents.shape))
    line = measured.line(Accelerator(cpu=True))
    # torch also counts the gradients of inputs that nothing needs: those of the embeddings of the timestep.
    assert line["model_flops_per_s"] == pytest.approx(counted.get_total_flops() / 2, rel=0.01)
    assert line["peak_share"] == pytest.approx(line["model_flops_per_s"] / 1e9, abs=1e-4)


def test_memory_is_the_most_that_was_held() -> None:
    before = meter.memory_held(torch.device("cpu"))
    size = before + 50_000_000  # more than ever: the most cannot hide it
    block = torch.ones(size // 4)
    del block
    assert before + 40_000_000 < meter.memory_held(torch.device("cpu")) < 10 * size


def test_the_log_has_every_figure_and_counts_what_was_skipped(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = loop._losses

    def losses(run: Any, module: Any, batch: Any) -> torch.Tensor:
        values = plain(run, module, batch)
        return values * float("inf") if torch.is_grad_enabled() and run.step in (1, 2) else values

    monkeypatch.setattr(loop, "_losses", losses)
    train(recipe(log_every=2), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3, 4, 6]
    assert [line["skipped"] for line in lines] == [1, 2, 2, 2]
    assert [line["loss"] is None for line in lines] == [False, True, False, False]
    assert [line["grad_norm"] is None for line in lines] == [True, True, False, False]
    assert [line["lr"] for line in lines] == pytest.approx([1e-3, 1e-3, 7.5e-4, 2.5e-4])
    timed = set(TIMED) - {"peak_share"}  # not known of a CPU
    for line in lines:
        assert {"loss", "grad_norm", "lr", "skipped", *timed} <= line.keys()
        assert all(line[key] > 0 for key in timed)
