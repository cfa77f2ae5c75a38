"""From folders to pipelines: runs, checkpoints, saved pipelines, and everything that is none of these."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mmdit import files
from mmdit.errors import Refused
from mmdit.pipelines.loading import find_source, load_pipeline

ASK: dict[str, Any] = {"prompt": "a red coat", "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "mine"
    tiny.write_run(folder)
    return folder


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """A run to damage."""
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_run_loads_with_its_averaged_weights(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = load_pipeline(run)
    assert "%" not in capfd.readouterr().err  # no progress bars
    for wanted, got in (
        (tiny.make_network(seed=2), pipeline.transformer),
        (tiny.make_encoder(seed=2).model, pipeline.text_encoder),
    ):
        assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), got.parameters(), strict=True))
        assert not got.training
    assert pipeline.scheduler.config.shift == 3.0
    assert pipeline.config.label_names == tiny.LABELS
    assert pipeline.config.clip == tiny.CLIP
    assert pipeline.config.origin["step"] == 5
    assert pipeline.config.origin["weights"] == "ema"
    assert {"checkpoint", "config"} <= set(pipeline.config.origin)


def test_the_weights_as_last_trained(run: Path) -> None:
    pipeline = load_pipeline(run, weights="raw")
    wanted = tiny.make_network(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), pipeline.transformer.parameters(), strict=True))
    with pytest.raises(Refused, match="ema, raw"):
        load_pipeline(run, weights="best")


def test_the_newest_checkpoint_and_a_chosen_one(copy: Path) -> None:
    old = copy / "checkpoints" / "step-0000005"
    tiny.write_run(copy, step=10)
    assert find_source(copy).folder.name == "step-0000010"
    assert find_source(old).folder == old
    assert load_pipeline(old).config.origin["step"] == 5


def test_a_damaged_checkpoint_is_refused_or_passed_over(copy: Path) -> None:
    weights = tiny.write_run(copy, step=10) / "ema" / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    for broken in (copy, copy / "checkpoints" / "step-0000010"):
        with pytest.raises(Refused, match=r"damaged.*ema/transformer"):
            load_pipeline(broken)
    assert find_source(copy, fallback=True).folder.name == "step-0000005"


def test_a_saved_pipeline_makes_the_same_clips(run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = load_pipeline(run)
    pipeline.save_pretrained(tmp_path / "saved")
    capfd.readouterr()
    again = load_pipeline(tmp_path / "saved")
    assert "%" not in capfd.readouterr().err  # no progress bars
    for one in (pipeline, again):
        one.set_progress_bar_config(disable=True)
    assert torch.equal(again(**ASK).frames, pipeline(**ASK).frames)
    source = find_source(tmp_path / "saved")
    assert source.labels is not None
    assert (source.labels.names, source.has_text) == (("coat", "dress", "skirt"), True)
    assert source.clip == {"frames": 3, "size": [16, 32], "fps": 8}
    assert source.origin == pipeline.config.origin


def test_another_codec_is_refused_with_both_fingerprints(copy: Path) -> None:
    state = json.loads((copy / "checkpoints" / "step-0000005" / "state.json").read_text())
    other = tiny.make_codec(seed=9)
    other.vae.save_pretrained(copy / "other")
    with pytest.raises(Refused) as refusal:
        load_pipeline(copy, codec=copy / "other")
    assert other.fingerprint[:16] in str(refusal.value)
    assert state["codec"]["fingerprint"][:16] in str(refusal.value)


def test_a_codec_that_was_moved_is_named(run: Path, tmp_path: Path) -> None:
    folder = tiny.write_run(tmp_path / "run")
    (tmp_path / "run" / "codec").rename(tmp_path / "moved")
    with pytest.raises(Refused):
        load_pipeline(folder)
    assert load_pipeline(folder, codec=tmp_path / "moved").has_text


def test_a_frozen_encoder_is_loaded_from_its_own_place(tmp_path: Path) -> None:
    encoder = tiny.make_encoder(seed=8)
    encoder.save(tmp_path / "encoder")
    tiny.write_run(tmp_path / "run", text_encoder=str(tmp_path / "encoder"))
    pipeline = load_pipeline(tmp_path / "run")
    assert all(
        torch.equal(a, b) for a, b in zip(encoder.model.parameters(), pipeline.text_encoder.parameters(), strict=True)
    )


def test_a_run_without_text(tmp_path: Path) -> None:
    tiny.write_run(tmp_path / "run", text_encoder="")
    source = find_source(tmp_path / "run")
    assert not source.has_text
    assert load_pipeline(source).text_encoder is None


def test_what_is_none_of_these_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    files.write_text(tmp_path / "file", "x")
    for path, said in (("none", "no such folder"), ("empty", "a folder without a checkpoint"), ("file", "a file")):
        with pytest.raises(Refused, match=said):
            load_pipeline(tmp_path / path)
    with pytest.raises(Refused, match="not a path, got int, expected a run folder"):
        load_pipeline(5)  # type: ignore[arg-type]
    (tmp_path / "demo").mkdir()
    copy.rename(tmp_path / "demo" / "run")
    with pytest.raises(Refused, match=r"did you mean .*demo/run"):
        load_pipeline(tmp_path / "demo")


def test_pipelines_of_other_kinds_and_halves_are_refused(tmp_path: Path, run: Path) -> None:
    files.write_json(tmp_path / "other" / "model_index.json", {"_class_name": "DiTPipeline"})
    files.write_json(tmp_path / "other" / "transformer" / "config.json", {})
    with pytest.raises(Refused, match="got DiTPipeline, expected ClipPipeline"):
        load_pipeline(tmp_path / "other")
    files.write_text(tmp_path / "half" / "model_index.json", "{")
    with pytest.raises(Refused, match="not a whole pipeline folder"):
        load_pipeline(tmp_path / "half")
    load_pipeline(run).save_pretrained(tmp_path / "part")
    (tmp_path / "part" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(Refused, match="cannot be loaded") as refusal:
        load_pipeline(tmp_path / "part")
    assert "\n" not in str(refusal.value)


def test_a_checkpoint_of_a_newer_format_is_refused(copy: Path) -> None:
    folder = copy / "checkpoints" / "step-0000005"
    state = json.loads((folder / "state.json").read_text())
    files.write_json(folder / "state.json", {**state, "format": 99})
    (folder / "manifest.json").unlink()
    tiny.write_manifest(folder)
    with pytest.raises(Refused, match="newer format"):
        find_source(copy)
