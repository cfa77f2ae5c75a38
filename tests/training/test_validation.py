"""Held-out losses: the same each time, by noise level and by label, and nothing that training would notice."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit.diffusion import GaussianDiffusion, RectifiedFlow
from mmdit.training import loop, validation
from mmdit.training.loop import train
from mmdit.training.meter import TIMED
from mmdit.training.processes import make_accelerator
from mmdit.training.run import Run, begin_run

EVERYTHING: dict[str, Any] = {"data__validation_split": "train", "data__image_share": 0.9}


@pytest.fixture(scope="module")
def begun(recipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With averages unlike the weights, and neither of them at their zero start."""
    config = recipe(validation_clips=7, conditions__drop_label=0.5, **EVERYTHING)
    run = begin_run(config, tmp_path_factory.mktemp("run"), make_accelerator(config))
    random = torch.Generator().manual_seed(0)
    for weight in run.trainee.parameters():
        weight.data += 0.05 * torch.randn(weight.shape, generator=random)
    for average in run.ema.averages.values():
        average += 0.05 * torch.randn(average.shape, generator=random)
    return run


def losses_of(run: Run) -> Any:
    return lambda batch: loop._losses(run, run.trainee, batch)


def test_every_clip_is_measured_at_every_level_with_all_that_is_told_of_it(begun: Run) -> None:
    seen: list[Any] = []

    def losses(batch: Any) -> torch.Tensor:
        seen.append(batch)
        return losses_of(begun)(batch)

    measured = validation.held_out(begun, losses)
    assert list(measured["val_noise"]) == ["0.1", "0.3", "0.5", "0.7", "0.9"]
    at_level: dict[float, list[Any]] = {}
    drawn = []
    for batch in seen:
        if len(set(batch.times.tolist())) == 1 and round(batch.times[0].item(), 4) in validation.LEVELS:
            at_level.setdefault(round(batch.times[0].item(), 4), []).append(batch)
        else:
            drawn.append(batch)
    data = begun.splits["validation"]
    null_label, null_text = len(begun.sources.labels), data.texts.rows([0])[0]  # type: ignore[union-attr]
    count = min(7, len(data))
    assert count > 4  # more than one batch
    first = [row for batch in at_level[0.1] for row in batch.places]
    assert len(set(first)) == count
    for batches in at_level.values():
        assert [row for batch in batches for row in batch.places] == first
        for one, other in zip(batches, at_level[0.1], strict=True):
            assert torch.equal(one.noise, other.noise) and torch.equal(one.latents, other.latents)
            assert one.latents.shape[2] == begun.pool.latent[1]  # no single frames
            assert (one.labels < null_label).all() and not (one.text[0] == null_text).all(1).any()
    assert any((batch.labels == null_label).any() for batch in drawn)  # as trained: some are dropped


def test_the_means_are_those_of_the_clips(begun: Run) -> None:
    """Losses that tell row, level and label apart, so that every mean is known."""
    rows = {(0, row): number for number, row in enumerate(begun.splits["validation"].pools[0].group.rows)}

    def losses(batch: Any) -> torch.Tensor:
        return torch.tensor(
            [rows[row] + 1000 * time for row, time in zip(batch.places, batch.times.tolist(), strict=True)]
        )

    measured = validation.held_out(begun, losses)
    whole = validation.whole_clips(begun.splits["validation"])
    count = min(7, len(rows))
    batches = [whole.batch(step, range(min(4, count - 4 * step))) for step in range((count + 3) // 4)]
    clips = torch.cat([torch.tensor([float(rows[row]) for row in batch.places]) for batch in batches])
    labels = torch.cat([batch.labels for batch in batches if batch.labels is not None])
    for level in validation.LEVELS:
        assert measured["val_noise"][str(level)] == pytest.approx(clips.mean().item() + 1000 * level)
    names = [begun.sources.labels[label] for label in labels.unique().tolist()]
    assert list(measured["val_labels"]) == names and len(names) > 1
    for name in names:
        mean = clips[labels == begun.sources.labels.index(name)].mean().item()
        assert measured["val_labels"][name] == pytest.approx(mean + 500)


def test_measuring_leaves_everything_as_it_was(begun: Run) -> None:
    kept = {name: value.clone() for name, value in begun.trainee.state_dict().items()}
    random = torch.get_rng_state()
    measured = validation.held_out(begun, losses_of(begun))
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(kept[name], value) for name, value in begun.trainee.state_dict().items())
    assert begun.trainee.training
    torch.randn(3)
    assert validation.held_out(begun, losses_of(begun)) == measured
    with begun.ema.in_place_of_weights(begun.trainee):
        pass
    for average in begun.ema.averages.values():
        average.mul_(1.5)
    assert validation.held_out(begun, losses_of(begun)) != measured  # it is the averages that are measured


@pytest.mark.parametrize("processes", [2, 3, 4])
def test_shares_of_all_processes_make_up_the_whole(begun: Run, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process makes as many forward passes, of as many clips, and what they found adds up to the same."""
    whole = validation.held_out(begun, losses_of(begun))
    parts: list[list[torch.Tensor]] = []
    calls: list[list[int]] = []

    class Accelerator:
        device = begun.accelerator.device
        num_processes = processes

        def __init__(self, rank: int, answers: list[torch.Tensor] | None = None) -> None:
            self.process_index, self.answers = rank, answers
            self.asked: list[torch.Tensor] = []

        def reduce(self, mine: torch.Tensor) -> torch.Tensor:
            self.asked.append(mine)
            return mine if self.answers is None else self.answers[len(self.asked) - 1]

    def measure(rank: int, answers: list[torch.Tensor] | None = None) -> Any:
        accelerator, sizes = Accelerator(rank, answers), []

        def losses(batch: Any) -> torch.Tensor:
            sizes.append(len(batch))
            return losses_of(begun)(batch)

        monkeypatch.setattr(begun, "accelerator", accelerator)
        with monkeypatch.context() as patched:
            patched.setattr(loop, "_autocast", lambda run: torch.autocast("cpu", enabled=False))
            measured = validation.held_out(begun, losses)
        parts.append(accelerator.asked)
        calls.append(sizes)
        return measured

    for rank in range(processes):
        measure(rank)
    assert all(sizes == calls[0] for sizes in calls)
    answers = [torch.stack([part[number] for part in parts]).sum(0) for number in range(2)]
    together = measure(0, answers)
    assert together["val_loss"] == pytest.approx(whole["val_loss"], abs=1e-6)
    for key in ("val_noise", "val_labels"):
        assert together[key] == pytest.approx(whole[key], abs=1e-6)


def test_levels_as_a_process_counts_them() -> None:
    assert validation.times_at(RectifiedFlow(), 0.3, 2).tolist() == pytest.approx([0.3, 0.3])
    times = validation.times_at(GaussianDiffusion(timesteps=500), 0.3, 2)
    assert times.tolist() == [150, 150] and times.dtype == torch.int64


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIMED} for line in lines]


def test_the_log_has_them_and_training_does_not_notice(recipe: Any, tmp_path: Path) -> None:
    make = partial(recipe, steps=3, trackers=[])
    train(make(validate_every=1), tmp_path / "often")
    train(make(validate_every=3), tmp_path / "once")
    often, once = logged(tmp_path / "often"), logged(tmp_path / "once")
    assert [line["loss"] for line in often] == [line["loss"] for line in once]
    assert all(("val_loss" in line) == ("val_noise" in line) == ("val_labels" in line) for line in often + once)
    assert "val_loss" not in once[0] and often[2] == once[2]


def test_a_diffusion_without_labels_and_no_validation_split(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=1, trackers=[], conditions={}, diffusion={"timesteps": 50}), tmp_path / "diffusion")
    (line,) = logged(tmp_path / "diffusion")
    assert "val_labels" not in line and len(line["val_noise"]) == 5
    train(recipe(steps=1, trackers=[], data__validation_split="none"), tmp_path / "none")
    assert not {"val_loss", "val_noise", "val_labels"} & set(logged(tmp_path / "none")[0])


def test_what_is_not_finite_is_null(begun: Run) -> None:
    measured = validation.held_out(begun, lambda batch: torch.full((len(batch),), float("nan")))
    assert set(measured["val_noise"].values()) == {None} == set(measured["val_labels"].values())
    json.loads(json.dumps(measured["val_noise"]), parse_constant=pytest.fail)


def test_clips_in_parts_are_the_same(begun: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = validation.held_out(begun, losses_of(begun))
    data = begun.config.data.model_copy(update={"micro_batch": 3})
    monkeypatch.setattr(begun, "config", begun.config.model_copy(update={"data": data}))
    sizes: list[int] = []

    def losses(batch: Any) -> torch.Tensor:
        sizes.append(len(batch))
        return losses_of(begun)(batch)

    in_parts = validation.held_out(begun, losses)
    assert max(sizes) == 3
    assert in_parts["val_loss"] == pytest.approx(whole["val_loss"], abs=1e-6)
