"""`mmdit bench sample` prints its table and its JSON, and calibrates once."""

import json
import math
from pathlib import Path

import commands
import pytest
import tiny
import torch

from mmdit import files
from mmdit.models import create_model, model_cost
from mmdit.pipelines import comparison, load_pipeline
from mmdit.pipelines.broadcast_file import weights_of
from mmdit.pipelines.sampling_speed import DTYPES, LABELS
from mmdit.tools import bench_sample
from mmdit.tools.bench_sample import ATTRIBUTES

FEW = ["bench", "sample", "--prompts", "2", "--steps", "4", "--reference-steps", "6", "--runs", "1", "--floor", "3"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    all_ways = comparison.ways
    monkeypatch.setattr(comparison, "ways", lambda *given: all_ways(*given)[:4])  # the others take a minute
    tiny.write_run(tmp_path / "run")
    return tmp_path / "run"


def test_the_table_and_the_figures_tell_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = run / "broadcast.json"
    assert commands.exit_code(*FEW, str(run), "--broadcast", settings) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("sample: ")]
    machine = dict(said.rsplit(" ", 1) for said in lines.pop(0).split(", "))
    assert (machine["threads"], machine["torch"]) == ("1", torch.__version__)
    about = lines.pop(0)
    assert about.startswith("clips 2, timed 2, float32, latents of 4x3x2x4; ") and "MB held at most" in about
    assert lines[0].split()[:7] == ["way", "steps", "calls", "passes", "seconds", "CPU", "s"]
    assert lines[0].split()[-4:] == list(ATTRIBUTES)
    written = settings.read_text("utf-8")
    assert commands.exit_code(*FEW, str(run), "--broadcast", settings, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    figures = told["figures"]
    assert settings.read_text("utf-8") == written
    assert figures["broadcast"]["every"] == json.loads(written)["every"]
    assert told["torch"] == machine["torch"]
    assert len(figures["ways"]) == len(lines) - 2
    network = load_pipeline(run).transformer.config
    patch, macs = network.patch_size, model_cost(network, (3, 2, 4)).macs
    for line, row in zip(lines[1:], figures["ways"], strict=False):
        assert line.startswith(row["name"])
        assert line[40:].split()[:2] == [str(row["steps"]), str(row["calls"])]
        assert list(row["accuracy"]) == list(ATTRIBUTES)
        assert row["cpu_seconds"] > 0
        tokens = row["tokens_per_s"] * row["seconds"] / row["passes"]
        assert tokens == pytest.approx(2 * 3 * 2 * 4 / math.prod(patch))  # of two clips
        assert row["flops_per_s"] * row["seconds"] / row["passes"] == pytest.approx(2 * 2 * macs)
        assert row["share"] == pytest.approx(row["flops_per_s"] / figures["product_flops_per_s"])
    assert figures["memory"] > 10**7 and figures["latent"] == [4, 3, 2, 4]


def test_only_the_ways_that_are_asked_for(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings, few = run / "checkpoints" / "step-0000005-ema-broadcast.json", FEW[:-2]  # as mmdit calibrate leaves it
    stored = {"format": 1, "every": {"time": 2}, "interval": [0, 1000], "found_with": {"num_inference_steps": 7}}
    files.write_json(settings, {**stored, "origin": weights_of(load_pipeline(run).config.origin)})
    asked = ("--faster", "first-block=1e9", "--faster", "broadcast")
    assert commands.exit_code(*few, str(run), *asked, "--json") == 0
    said = capsys.readouterr()
    assert "note: attention broadcast was calibrated with 7 steps: " in said.err
    assert json.loads(said.out)["figures"]["broadcast"]["every"] == {"time": 2}
    rows = {row["name"]: row for row in json.loads(said.out)["figures"]["ways"]}
    assert list(rows) == ["plain, 6 steps", "plain, 4 steps", "first-block=1e9", "broadcast"]
    assert rows["first-block=1e9"]["passes"] == 5  # of two blocks, the first at 4 steps and the second at one; guided
    assert rows["broadcast"]["psnr_plain"] is not None
    assert commands.exit_code(*few, str(run), "--faster", "magic") == 2
    assert "no such way to sample faster" in capsys.readouterr().err


def test_a_model_that_reads_no_prompts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_run(tmp_path / "run", text_encoder="")
    assert commands.exit_code(*FEW, str(tmp_path / "run")) == 2
    assert "reads no prompts" in capsys.readouterr().err


def test_without_a_run_images_are_sampled_beside_diffusers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_sample, "LATENTS", 8)
    words = ["bench", "sample", "--preset", "tiny", "--steps", "2", "--runs", "1", "--batch", "2"]
    assert commands.exit_code(*words, "--json") == 0
    rows = {row["way"]: row for row in json.loads(capsys.readouterr().out)["figures"]}
    assert list(rows) == [f"{name}, {precision}" for precision in DTYPES for name in ("diffusers DiTPipeline", "mmdit")]
    options = {"sample_size": (1, 8, 8), "in_channels": 4, "out_channels": 8, "num_classes": LABELS}
    flops = 2 * 2 * model_cost(create_model("tiny", **options).config, (1, 8, 8)).macs  # with and without the label
    for row in rows.values():
        assert row["networks_apart"] < 1e-5 and row["memory"] > 0 and row["times"] > 0
        assert row["tokens_per_s"] * row["seconds"] == pytest.approx(2 * 2 * 16)
        assert row["flops_per_s"] * row["seconds"] == pytest.approx(2 * 2 * flops)
        assert row["share"] == pytest.approx(row["flops_per_s"] / row["product_flops_per_s"])
    assert rows["diffusers DiTPipeline, float32"]["times"] == 1
    assert commands.exit_code(*words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 images of tiny, latents of 8x8, 2 steps" in lines[1]
    assert [line[:34].strip() for line in lines[3:]] == list(rows)
    assert commands.exit_code("bench", "sample", "--preset", "DiT-Q/3") == 2
    assert "unknown preset" in capsys.readouterr().err
