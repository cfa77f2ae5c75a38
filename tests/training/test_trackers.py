"""TensorBoard by default, others by name; what they are told is what metrics.jsonl says."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mmdit.errors import Refused
from mmdit.training import trackers
from mmdit.training.loop import train
from mmdit.training.watching import samples_folder

SAMPLES = {"every": 2}


def events(run: Path) -> EventAccumulator:
    read = EventAccumulator(str(run / "trackers" / "mmdit"), size_guidance={"scalars": 0, "images": 0})
    return read.Reload()


def scalars(run: Path, name: str) -> list[tuple[int, Any]]:
    return [(event.step, event.value) for event in events(run).Scalars(name)]


def clips_of(step: int) -> dict[str, np.ndarray]:
    return {"00": np.full((17, 4, 6, 3), step, np.uint8), "01": np.zeros((17, 4, 6, 3), np.uint8)}


def sample(run: Any) -> Any:
    def take(stop_wanted: Any) -> Any:
        samples_folder(run.folder, run.step).mkdir(parents=True)
        return clips_of(run.step)

    return take


class Interrupted(Exception):
    pass


def test_tensorboard_has_every_number_of_the_log_and_the_clips(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=4, samples=SAMPLES), tmp_path, sample=sample)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    read = events(tmp_path)
    wanted = {"loss", "grad_norm", "lr", "skipped", "clips_per_s", "val_loss", "val_noise/0.1", "val_noise/0.9"}
    assert wanted | {f"val_labels/{name}" for name in lines[-1]["val_labels"]} <= set(read.Tags()["scalars"])
    assert "step" not in read.Tags()["scalars"]
    assert scalars(tmp_path, "loss") == [(line["step"], pytest.approx(line["loss"])) for line in lines]
    assert scalars(tmp_path, "val_noise/0.5") == [
        (line["step"], pytest.approx(line["val_noise"]["0.5"])) for line in lines if "val_noise" in line
    ]
    assert read.Tags()["images"] == ["samples/00", "samples/01"]
    pictures = read.Images("samples/00")
    assert [(picture.step, picture.height, picture.width) for picture in pictures] == [(2, 4, 48), (4, 4, 48)]


def test_a_resumed_run_goes_on_in_the_same_log_without_the_steps_done_again(recipe: Any, tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 5:
            raise Interrupted

    config = recipe(steps=6, samples=SAMPLES)
    with pytest.raises(Interrupted):
        train(config, tmp_path, sample=sample, progress=stop)
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2, 3, 4, 5]
    train(config, tmp_path, sample=sample)
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2, 3, 4, 5, 6]
    assert [picture.step for picture in events(tmp_path).Images("samples/00")] == [2, 4, 6]
    files = list((tmp_path / "trackers").rglob("*"))
    train(config, tmp_path, sample=sample)  # nothing is left to do
    assert list((tmp_path / "trackers").rglob("*")) == files


def test_without_trackers_nothing_is_written(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=1, trackers=[]), tmp_path)
    assert not (tmp_path / "trackers").exists()


class Fake(GeneralTracker):
    """Stands in for a service: what it was begun with and told."""

    name = "wandb"
    requires_logging_directory = False
    begun: list[dict[str, Any]] = []  # noqa: RUF012
    told: list[tuple[int, dict[str, Any]]] = []  # noqa: RUF012
    fails_at: int | None = None
    ended = 0

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        if options["name"] == "no account":
            raise RuntimeError("not logged in\nand more")
        self.begun.append({"project": run_name, **options})

    tracker = None

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        assert step is not None
        if step == self.fails_at:
            raise ConnectionError("unreachable\nfor now")
        self.told.append((step, values))

    def finish(self) -> None:
        type(self).ended += 1


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Fake]:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "wandb", Fake)
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["tensorboard", "wandb"])
    Fake.begun, Fake.told, Fake.fails_at, Fake.ended = [], [], None, 0
    return Fake


def test_a_tracker_by_name_gets_one_run_for_all_resumptions(recipe: Any, fake: type[Fake], tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 3:
            raise Interrupted

    config = recipe(steps=4, trackers=["wandb"], samples=SAMPLES)
    with pytest.raises(Interrupted):
        train(config, tmp_path / "mine", sample=sample, progress=stop)
    assert fake.ended == 1  # whatever the end
    train(config, tmp_path / "mine", sample=sample)
    first, second = fake.begun
    assert first == second
    assert first["resume"] == "allow" and first["name"] == "mine" and first["config"]["steps"] == 4
    train(config, tmp_path / "other", sample=sample)
    assert fake.begun[2]["id"] != first["id"]
    assert [step for step, _ in fake.told[:5]] == [1, 2, 3, 3, 4]


def test_a_tracker_that_fails_is_left_out(
    recipe: Any, fake: type[Fake], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.fails_at = 2
    with caplog.at_level(logging.WARNING):
        train(recipe(steps=4, trackers=["wandb", "tensorboard"]), tmp_path)
    assert caplog.text.count("the tracker wandb fails, and is left out from now on: unreachable") == 1
    assert [step for step, _ in fake.told] == [1]
    assert [step for step, _ in scalars(tmp_path, "loss")] == [1, 2, 3, 4]


def test_what_cannot_be_told_is_refused_before_any_step(recipe: Any, fake: type[Fake], tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"unknown tracker, got tensorbord, .*did you mean tensorboard\?"):
        recipe(trackers=["tensorbord"])
    with pytest.raises(Refused, match="a tracker does not start, got not logged in; set it up"):
        train(recipe(trackers=["wandb"]), tmp_path / "no account")
    with pytest.raises(Refused, match="the tracker is not installed, got trackers: mlflow"):
        train(recipe(trackers=["mlflow"]), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_what_is_not_finite_is_left_out(fake: type[Fake]) -> None:
    trackers.TrackersOfRun([fake("mmdit", name="")]).log(
        {"step": 1, "loss": None, "val_noise": {"0.1": None, "0.3": 2}}
    )
    assert fake.told == [(1, {"val_noise/0.3": 2})]


def test_frames_side_by_side_are_evenly_spread() -> None:
    clip = np.arange(17, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 1, 3), np.uint8)
    assert trackers.frames_side_by_side(clip)[0, :, 0].tolist() == [0, 2, 5, 7, 9, 11, 14, 16]
    assert trackers.frames_side_by_side(clip[:3]).shape == (2, 3, 3)
