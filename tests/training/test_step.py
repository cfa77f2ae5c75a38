"""The step: micro batches, float16 with its loss scaler, compiling, several averages."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter

from mmdit.errors import Refused
from mmdit.training import loop, processes
from mmdit.training.checkpoint import find_checkpoint, read_state, write_manifest
from mmdit.training.loop import train

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def log(run: Path, key: str) -> list[Any]:
    return [json.loads(line)[key] for line in (run / "metrics.jsonl").read_text().splitlines()]


class Interrupted(Exception):
    pass


def stop(step: int, *_: object) -> None:
    if step == 3:
        raise Interrupted


def weights_of(run: Path, folder: str = "") -> dict[str, torch.Tensor]:
    return load_file(find_checkpoint(run) / folder / WEIGHTS)


@pytest.mark.parametrize("size", [1, 3])  # 3: the last part of four clips has one
def test_micro_batches_equal_the_large_batch(recipe: Any, tmp_path: Path, size: int) -> None:
    # Clipped hard at every step: clipping each part by itself would give other steps.
    changes = {"optimizer__clip_norm": 0.01, "optimizer__muon_lr": None, "optimizer__lr": 1e-4}
    train(recipe(**changes), tmp_path / "whole")
    seen: list[int] = []
    alone = itertools.count()
    plain = loop._losses

    def losses(run: Any, module: Any, batch: Any) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append(len(batch.latents))
        return plain(run, module, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_losses", losses)
        no_sync = Accelerator.no_sync
        patch.setattr(Accelerator, "no_sync", lambda *given: (next(alone), no_sync(*given))[1])
        train(recipe(data__micro_batch=size, **changes), tmp_path / "parts")
    assert seen == {1: [1] * 24, 3: [3, 1] * 6}[size]
    assert next(alone) == len(seen) - 6  # the gradient is exchanged once in each of six steps
    assert log(tmp_path / "parts", "loss") == pytest.approx(log(tmp_path / "whole", "loss"), abs=1e-6)
    assert log(tmp_path / "parts", "grad_norm") == pytest.approx(log(tmp_path / "whole", "grad_norm"), rel=1e-5)
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=0, atol=1e-6)


def test_float16_on_a_cpu_is_refused(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="float16 needs a CUDA device.*set precision=auto"):
        train(recipe(precision="float16"), tmp_path)
    assert not tmp_path.joinpath("metrics.jsonl").exists()


def test_float16_scales_its_loss(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, where it is slow and otherwise the same."""
    monkeypatch.setattr(processes, "can_float16", lambda device: True)
    dtypes: set[torch.dtype] = set()
    plain, scales = loop._gradient_norm, []

    def gradient_norm(run: Any) -> torch.Tensor:
        scales.append(run.scaler.get_scale())
        if run.step == 3:  # as a float16 gradient above 65504
            next(weight.grad for weight in run.trainee.parameters() if weight.grad is not None).fill_(float("inf"))
        return plain(run)

    monkeypatch.setattr(loop, "_gradient_norm", gradient_norm)
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, out: dtypes.add(out.dtype) if isinstance(module, torch.nn.Linear) else None
    )
    try:
        train(recipe(precision="float16"), tmp_path / "half")
    finally:
        hook.remove()
    assert torch.float16 in dtypes
    assert scales == [65536.0] * 4 + [32768.0] * 2
    assert log(tmp_path / "half", "skipped") == [0, 0, 0, 1, 1, 1]
    assert read_state(find_checkpoint(tmp_path / "half"))["scaler"]["scale"] == 32768.0
    train(recipe(), tmp_path / "single")
    assert log(tmp_path / "half", "loss")[:3] == pytest.approx(log(tmp_path / "single", "loss")[:3], rel=5e-3)
    norms = [log(tmp_path / name, "grad_norm")[0] for name in ("half", "single")]
    assert norms[0] == pytest.approx(norms[1], rel=0.02)  # out of the scale again


def test_float16_goes_on_with_its_scale(recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "can_float16", lambda device: True)
    begin = loop.begin_run

    def quickly_growing(*given: Any) -> Any:
        run = begin(*given)
        run.scaler.set_growth_interval(1)
        return run

    monkeypatch.setattr(loop, "begin_run", quickly_growing)

    train(recipe(precision="float16"), tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe(precision="float16"), tmp_path / "parts", progress=stop)
    train(recipe(precision="float16"), tmp_path / "parts")
    states = [read_state(find_checkpoint(tmp_path / name))["scaler"] for name in ("whole", "parts")]
    assert states[0] == states[1] and states[0]["scale"] != 65536.0
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(parts[key], whole[key]) for key in whole)


def test_compiling_compiles_and_changes_no_loss(
    recipe: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = CompileCounter()
    plain = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module: plain(module, backend=counter))
    changes = {"steps": 2, "data__image_share": 0.0, "model__depth": 1}
    train(recipe(**changes), tmp_path / "plain")
    assert counter.frame_count == 0
    train(recipe(compile=True, **changes), tmp_path / "compiled")
    assert counter.frame_count > 0
    assert log(tmp_path / "compiled", "loss") == pytest.approx(log(tmp_path / "plain", "loss"), abs=1e-6)
    assert weights_of(tmp_path / "compiled").keys() == weights_of(tmp_path / "plain").keys()
    torch._dynamo.reset()


def test_several_averages_are_kept_and_taken_up(recipe: Any, tmp_path: Path) -> None:
    train(recipe(ema_decay=0.1), tmp_path / "short")
    train(recipe(ema_decay=0.9), tmp_path / "long")

    both = recipe(ema_decay=[0.9, 0.1], ema_device="cpu")
    with pytest.raises(Interrupted):
        train(both, tmp_path / "both", progress=stop)
    train(both, tmp_path / "both")
    for folder, other in (("ema", "long"), ("ema_0.1", "short")):
        here, there = weights_of(tmp_path / "both", folder), weights_of(tmp_path / other, "ema")
        assert all(torch.equal(here[key], there[key]) for key in there)
    assert log(tmp_path / "both", "loss") == log(tmp_path / "long", "loss")
    with pytest.raises(Refused, match="ema_decay"):
        recipe(ema_decay=[])
    with pytest.raises(Refused, match="ema_decay"):
        recipe(ema_decay=[0.9, 1.0])


def test_a_checkpoint_without_the_newer_entries_is_taken_up(recipe: Any, tmp_path: Path) -> None:
    """As written before there were scalers and counts of skipped steps."""
    with pytest.raises(Interrupted):
        train(recipe(), tmp_path / "old", progress=stop)
    state = find_checkpoint(tmp_path / "old") / "state.json"
    values = json.loads(state.read_text())
    state.write_text(json.dumps({key: value for key, value in values.items() if key not in ("scaler", "skipped")}))
    (state.parent / "manifest.json").unlink()
    write_manifest(state.parent)
    train(recipe(), tmp_path / "old")
    train(recipe(), tmp_path / "whole")
    assert all(
        torch.equal(value, weights_of(tmp_path / "whole")[key]) for key, value in weights_of(tmp_path / "old").items()
    )
