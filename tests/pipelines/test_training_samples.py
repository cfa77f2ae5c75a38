"""Clips sampled while training: what they show, that they are what the checkpoint makes, and that training goes on."""

import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from encoding import encode
from PIL import Image

from mmdit.clips.made import make_clips
from mmdit.clips.video import clip_to_frames, read_metadata
from mmdit.conditioning import build_text_encoder
from mmdit.config import parse_config
from mmdit.errors import Refused, Stopped
from mmdit.latents.store import LatentStore
from mmdit.pipelines import training_samples
from mmdit.pipelines.loading import load_pipeline
from mmdit.pipelines.training_samples import prepare_samples
from mmdit.training.checkpoint import find_checkpoint, read_state
from mmdit.training.config import RunConfig
from mmdit.training.loop import train
from mmdit.training.run import Run

Recipe = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Makes recipes on a store of small clips, whose codec lies in a folder of its own."""
    folder = tmp_path_factory.mktemp("data")
    make_clips(folder / "clips", 30, seed=0, size=(32, 32), frames=3, fps=8)
    codec = tiny.make_codec()
    codec.vae.save_pretrained(folder / "codec")
    store, name = folder / "store", str(folder / "codec")
    encode(folder / "clips", store, codec, codec_name=name, frames=3, size=(32, 32), psnr_every=0)

    def make(**changes: Any) -> RunConfig:
        values: dict[str, Any] = {
            "steps": 2, "precision": "float32", "data": {"store": str(store), "batch_size": 4},
            "conditions": {"labels": True, "text": {"width": 16, "depth": 1, "heads": 2}},
            "model": {"hidden_size": 32, "depth": 2, "num_heads": 2}, "optimizer": {"lr": 1e-2}, "ema_decay": 0.5,
            "log_every": 1, "trackers": [], "samples": {"every": 1, "steps": 2, "count": 2},
        }  # fmt: skip
        return parse_config(RunConfig, {**values, **changes}, where="the test's recipe")

    return make


def listed(run: Path, step: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "samples" / f"step-{step:07d}" / "samples.json").read_text())
    return found


class Kept:
    """Prepares samples, and keeps the frames of each step."""

    def __init__(self) -> None:
        self.clips: dict[int, dict[str, np.ndarray]] = {}

    def __call__(self, run: Run) -> Any:
        take = prepare_samples(run)

        def taken(stop_wanted: Callable[[], bool]) -> dict[str, np.ndarray]:
            self.clips[run.step] = take(stop_wanted)
            return self.clips[run.step]

        return taken


def test_the_files_and_what_they_say(recipe: Recipe, tmp_path: Path) -> None:
    kept = Kept()
    train(recipe(steps=3, samples={"every": 2, "steps": 2}), tmp_path, sample=kept)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-0000002", "step-0000003"]
    names = ["00.mp4", "01.mp4", "02.mp4", "03.mp4"]
    for step in (2, 3):
        folder = tmp_path / "samples" / f"step-{step:07d}"
        assert sorted(path.name for path in folder.iterdir()) == [*names, "samples.json"]
        assert [clip["file"] for clip in listed(tmp_path, step)] == names
        assert all(set(clip) == {"file", "prompt", "label", "seed"} for clip in listed(tmp_path, step))
    assert listed(tmp_path, 2) == listed(tmp_path, 3)  # the same noise and prompt at each step
    assert len({clip["seed"] for clip in listed(tmp_path, 2)}) == 4
    assert kept.clips[2]["00"].shape == (3, 32, 32, 3) and kept.clips[2]["00"].dtype == np.uint8
    assert not np.array_equal(kept.clips[2]["00"], kept.clips[3]["00"])  # but other weights


def test_by_default_they_show_what_clips_of_the_validation_split_show(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(steps=1, samples={"every": 1, "steps": 1, "count": 3})
    train(config, tmp_path, sample=prepare_samples)
    store = LatentStore.open(config.data.store)
    rows = [store.row(row) for row in store.split("validation")]
    pairs = [(clip["prompt"], clip["label"]) for clip in listed(tmp_path, 1)]
    assert set(pairs) <= {(row["caption"], row["label"]) for row in rows}
    assert len(set(pairs)) == min(3, len(rows)) > 1


def test_what_is_never_dropped_is_not_led_away_from(recipe: Recipe, tmp_path: Path) -> None:
    conditions = {"labels": True, "text": {"width": 16, "depth": 1, "heads": 2}, "drop_text": 0.0}
    samples = {"every": 1, "steps": 1, "count": 1}
    with pytest.raises(Refused, match="guidance 3"):
        train(recipe(conditions=conditions, samples={**samples, "guidance": 3.0}), tmp_path, sample=prepare_samples)
    with pytest.raises(Refused, match="never trained without a prompt"):
        train(recipe(conditions=conditions, samples={**samples, "labels": [0]}), tmp_path, sample=prepare_samples)
    checkpoint = train(
        recipe(steps=1, conditions=conditions, samples=samples), tmp_path / "run", sample=prepare_samples
    )
    about: dict[str, Any] = read_metadata(tmp_path / "run" / "samples" / "step-0000001" / "00.mp4")
    assert about["guidance"] == 1.0
    assert read_state(checkpoint)["null_conditions"] == ["label"]
    more = recipe(steps=1, conditions=conditions, samples=None, init_from=str(checkpoint))
    assert read_state(train(more, tmp_path / "more"))["null_conditions"] is None  # what it began with may know more


def test_prompts_and_labels_are_taken_in_turn(recipe: Recipe, tmp_path: Path) -> None:
    names = LatentStore.open(recipe().data.store).labels
    asked = {"prompts": ["a red coat", "a blue dress"], "labels": [names[1], 0], "count": 3}
    train(recipe(steps=1, samples={"steps": 1, **asked}), tmp_path / "both", sample=prepare_samples)
    shown = [(clip["prompt"], clip["label"]) for clip in listed(tmp_path / "both", 1)]
    assert shown == [("a red coat", names[1]), ("a blue dress", names[0]), ("a red coat", names[1])]
    train(recipe(steps=1, samples={"steps": 1, "prompts": ["a coat"]}), tmp_path / "one", sample=prepare_samples)
    assert [(clip["prompt"], clip["label"]) for clip in listed(tmp_path / "one", 1)] == [("a coat", None)]


@pytest.mark.parametrize("kind", ["trained along", "frozen", "diffusion", "labels", "none"])
def test_a_sample_is_what_the_checkpoint_makes_from_its_seed(kind: str, recipe: Recipe, tmp_path: Path) -> None:
    changes: dict[str, Any] = {}
    if kind in ("labels", "none"):
        changes = {"conditions": {"labels": kind == "labels"}}
    if kind == "diffusion":
        changes = {"diffusion": {"timesteps": 50}}
    if kind == "frozen":
        encoder = build_text_encoder(["a red coat, turning"], width=16, depth=1, heads=2, max_tokens=8, seed=0)
        encoder.save(tmp_path / "encoder")
        changes = {"conditions": {"text": {"encoder": str(tmp_path / "encoder")}}}
    kept = Kept()
    train(recipe(**changes), tmp_path / "run", sample=kept)
    pipeline = load_pipeline(find_checkpoint(tmp_path / "run"))
    for number, clip in enumerate(listed(tmp_path / "run", 2)):
        prompt, label = clip["prompt"], clip["label"]
        made = pipeline(
            prompt, label, seed=clip["seed"], num_inference_steps=2, guidance_scale=2.0, output_type="pt"
        ).frames[0]
        assert np.array_equal(clip_to_frames(made), kept.clips[2][f"{number:02d}"])


def test_training_does_not_notice(recipe: Recipe, tmp_path: Path) -> None:
    train(recipe(), tmp_path / "with", sample=prepare_samples)
    train(recipe(samples=None), tmp_path / "without")
    manifests = [(find_checkpoint(tmp_path / name) / "manifest.json").read_text() for name in ("with", "without")]
    assert manifests[0] == manifests[1]


def test_what_cannot_be_sampled_is_refused_before_any_step(recipe: Recipe, tmp_path: Path) -> None:
    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(Refused, match=match):
            train(recipe(**changes), tmp_path, sample=prepare_samples)
        assert not (tmp_path / "metrics.jsonl").exists()

    refused("nothing like it", samples={"labels": ["nothing like it"]})
    refused("this model reads no prompts", conditions={"labels": True}, samples={"prompts": ["a coat"]})
    refused("this model has no labels", conditions={"text": {}}, samples={"labels": [0]})
    with pytest.raises(Refused, match="nothing makes samples here"):
        train(recipe(), tmp_path)
    with pytest.raises(Refused, match=r"samples\.count"):
        recipe(samples={"count": 0})


def test_a_codec_that_is_gone_or_another_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    codec = Path(LatentStore.open(recipe().data.store).meta["codec"]["name"])
    codec.rename(tmp_path / "away")
    try:
        with pytest.raises(Refused, match="codec"):
            train(recipe(), tmp_path / "run", sample=prepare_samples)
        tiny.make_codec(seed=1).vae.save_pretrained(codec)
        with pytest.raises(Refused, match="the codec is not the one that the clips were encoded with"):
            train(recipe(), tmp_path / "run", sample=prepare_samples)
        assert not (tmp_path / "run" / "metrics.jsonl").exists()
    finally:
        shutil.rmtree(codec, ignore_errors=True)
        (tmp_path / "away").rename(codec)


def test_a_failure_is_logged_and_training_goes_on(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory\nfor this")

    with caplog.at_level(logging.WARNING), monkeypatch.context() as patched:
        patched.setattr(training_samples, "_make", fails)
        train(recipe(), tmp_path / "memory", sample=prepare_samples)
    assert "sampling failed at step 1, and the training goes on: no memory\n" in caplog.text
    with caplog.at_level(logging.WARNING), monkeypatch.context() as patched:
        patched.setenv("MMDIT_FAULT", "full@samples/step-0000001")
        train(recipe(), tmp_path / "disk", sample=prepare_samples)
    assert "the samples of step 1 cannot be written, and the training goes on" in caplog.text
    assert [path.name for path in (tmp_path / "disk" / "samples").iterdir()] == ["step-0000002"]
    for name in ("memory", "disk"):
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == 2
        assert find_checkpoint(tmp_path / name).name == "step-0000002"
    assert not (tmp_path / "memory" / "samples").exists()


class Interrupted(Exception):
    pass


def test_steps_that_are_done_again_are_sampled_again(recipe: Recipe, tmp_path: Path) -> None:
    config = recipe(steps=2, checkpoint_every=2)
    prepared: list[Any] = []

    def then_crash(run: Run) -> Any:
        take = prepare_samples(run)

        def taken(stop_wanted: Callable[[], bool]) -> Any:
            prepared.append(take(stop_wanted))
            (tmp_path / "samples" / ".part-1-left").mkdir()
            raise Interrupted

        return taken

    with pytest.raises(Interrupted):
        train(config, tmp_path, sample=then_crash)
    (tmp_path / "samples" / "step-0000001" / "00.mp4").unlink()
    train(config, tmp_path, sample=prepare_samples)
    folders = sorted((tmp_path / "samples").iterdir())
    assert [folder.name for folder in folders] == ["step-0000001", "step-0000002"]
    assert all(len(list(folder.iterdir())) == 3 for folder in folders)


@pytest.mark.parametrize("step", [2, 3])
def test_asked_to_stop_while_sampling_the_same_command_makes_the_samples(
    recipe: Recipe, tmp_path: Path, step: int
) -> None:
    config = recipe(steps=3, checkpoint_every=3, samples={"every": 2, "steps": 2, "count": 2})
    train(config, tmp_path / "whole", sample=prepare_samples)

    def asked(run: Run) -> Any:
        take = prepare_samples(run)

        def taken(stop_wanted: Callable[[], bool]) -> Any:
            if run.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return take(stop_wanted)

        return taken

    with pytest.raises(Stopped, match=f"asked to stop.*step {step} of 3, saved"):
        train(config, tmp_path / "stopped", sample=asked)
    assert find_checkpoint(tmp_path / "stopped").name == f"step-000000{step}"
    assert not (tmp_path / "stopped" / "samples" / f"step-000000{step}").exists()
    train(config, tmp_path / "stopped", sample=prepare_samples)
    folders = [tmp_path / name / "samples" for name in ("whole", "stopped")]
    made = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in folders]
    assert made[0] == made[1] and len(made[0]) == 2 * 3
    train(config, tmp_path / "stopped", sample=lambda run: pytest.fail("nothing is left to do"))


def begun(config: RunConfig, folder: Path) -> Run:
    """A run as it is at its first sample."""
    found: list[Run] = []

    def stop(run: Run) -> Any:
        found.append(run)
        raise Interrupted

    with pytest.raises(Interrupted):
        train(config, folder, sample=stop)
    return found[0]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_clips_of_all_processes_are_those_of_one(recipe: Recipe, processes: int, tmp_path: Path) -> None:
    """Each makes every so-many-th of three clips, and all of them the same number of times."""
    run = begun(recipe(samples={"steps": 1, "count": 3}), tmp_path)
    one = prepare_samples(run)(lambda: False)
    asked: list[list[torch.Tensor]] = []

    class Accelerator:
        device, mixed_precision, num_processes = run.accelerator.device, "no", processes

        def __init__(self, rank: int, answers: list[torch.Tensor] | None) -> None:
            self.process_index, self.is_main_process, self.answers = rank, rank == 0, answers
            asked.append([])

        def reduce(self, mine: torch.Tensor) -> torch.Tensor:
            asked[-1].append(mine)
            return mine if self.answers is None else self.answers[len(asked[-1]) - 1]

    for rank in range(processes):
        run.accelerator = Accelerator(rank, None)
        made = prepare_samples(run)(lambda: False)
        assert rank == 0 or made == {}
    assert len({len(each) for each in asked}) == 1
    answers = [torch.stack(parts).sum(0).to(parts[0].dtype) for parts in zip(*asked, strict=True)]
    run.accelerator = Accelerator(0, answers)
    together = prepare_samples(run)(lambda: False)
    assert list(together) == list(one) == ["00", "01", "02"]
    assert all(np.array_equal(together[name], one[name]) for name in one)


def test_it_leaves_off_when_the_training_is_to_stop(recipe: Recipe, tmp_path: Path) -> None:
    run = begun(recipe(), tmp_path)
    assert prepare_samples(run)(lambda: True) == {}
    assert not (tmp_path / "samples").exists()
    assert run.trainee.training


def test_the_codec_decodes_in_tiles_and_one_frame_is_a_picture(recipe: Recipe, tmp_path: Path) -> None:
    run = begun(recipe(), tmp_path)
    pipeline = training_samples._pipeline(run)
    assert pipeline.codec.tiling is not None
    assert run.config.samples is not None
    wanted = training_samples._wanted(run, run.config.samples, pipeline)
    frame = np.full((1, 8, 8, 3), 7, np.uint8)
    training_samples._write(run, pipeline, wanted, [frame, frame])
    with Image.open(tmp_path / "samples" / "step-0000000" / "01.png") as picture:
        assert picture.size == (8, 8)
        about = json.loads(picture.info["comment"])
    assert about["seed"] == wanted[1].seed and about["step"] == 0 and about["weights"] == "ema"
