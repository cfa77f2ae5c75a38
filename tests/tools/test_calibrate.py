"""`mmdit calibrate`, and `--faster` of `mmdit generate`: kept beside the weights, told in the files, made again."""

import json
from pathlib import Path

import pytest
import tiny
from commands import exit_code

from mmdit.errors import Refused
from mmdit.pipelines import load_pipeline
from mmdit.pipelines.clip_pipeline import ClipPipeline
from mmdit.pipelines.output import read_note
from mmdit.training.checkpoint import find_checkpoint

CALL = ("--prompt", "a red coat", "--steps", 6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calibrate") / "run"
    tiny.write_run(folder)
    return folder


@pytest.fixture(scope="module")
def settings(run: Path) -> Path:
    assert exit_code("calibrate", run, *CALL, "--floor", 1) == 0
    return run / "checkpoints" / "step-0000005-ema-broadcast.json"


@pytest.fixture(scope="module")
def clip(run: Path, settings: Path) -> Path:
    assert exit_code("generate", run, *CALL, "--faster", "broadcast", "--out", run.parent / "clip.png") == 0
    return run.parent / "clip.png"


def test_without_a_calibration_the_refusal_says_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny.write_run(tmp_path / "run", labels=False)
    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", lambda *args, **more: 1 / 0)
    words = ("generate", tmp_path / "run", *CALL, "--faster", "broadcast", "--out", tmp_path / "a.mp4")
    assert exit_code(*words) == 2
    assert f"do it once: mmdit calibrate {tmp_path / 'run'}\n" in capsys.readouterr().err
    assert exit_code(*words, "--weights", "raw") == 2
    assert f"mmdit calibrate {tmp_path / 'run'} --weights raw\n" in capsys.readouterr().err
    assert exit_code("calibrate", tmp_path / "run") == 2
    assert "name some: --prompt" in capsys.readouterr().err
    assert exit_code("calibrate", tmp_path / "run", "--prompt", "red", "--floor", "nan") == 2
    assert "floor is out of range" in capsys.readouterr().err


def test_the_settings_lie_beside_the_weights_and_the_checkpoint_stays_whole(run: Path, settings: Path) -> None:
    stored = json.loads(settings.read_text("utf-8"))
    assert stored["every"] and stored["psnr"] >= stored["floor"] == 1
    assert find_checkpoint(run).name == "step-0000005"  # verified
    pipeline = load_pipeline(run)
    pipeline.enable_attention_broadcast()
    assert pipeline.faster == {"broadcast": {"every": stored["every"], "interval": stored["interval"]}}
    with pytest.raises(Refused, match="was not calibrated"):
        load_pipeline(run, weights="raw").enable_attention_broadcast()


def test_the_file_says_it_and_is_made_again(
    run: Path, settings: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored, note = json.loads(settings.read_text("utf-8")), read_note(clip)
    assert note["faster"] == {"broadcast": {"every": stored["every"], "interval": stored["interval"]}}
    assert exit_code("generate", run, *CALL, "--out", tmp_path / "plain.png") == 0
    plain = read_note(tmp_path / "plain.png")
    assert plain["faster"] is None
    assert plain["frames_sha256"] != note["frames_sha256"]
    aside = settings.rename(tmp_path / "aside.json")  # what the file says is enough
    try:
        capsys.readouterr()
        assert exit_code("regenerate", clip, "--out", tmp_path / "again.png") == 0
        assert capsys.readouterr().out.endswith(f"\nidentical: {tmp_path / 'again.png'}\n")
    finally:
        aside.rename(settings)


def test_another_number_of_steps_or_sampler_is_noted(
    run: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", run, "--prompt", "red", "--faster", "broadcast", "--out", tmp_path / "a.png")
    capsys.readouterr()
    assert exit_code(*words, "--steps", 6) == 0
    assert "note: attention" not in capsys.readouterr().err
    assert exit_code(*words, "--steps", 3, "--sampler", "heun") == 0
    said = capsys.readouterr().err
    assert "note: attention broadcast was calibrated with 6 steps, FlowMatchEulerDiscreteScheduler as sampler" in said


def test_a_saved_pipeline_carries_the_settings(run: Path, settings: Path, clip: Path, tmp_path: Path) -> None:
    assert exit_code("export", run, tmp_path / "coats") == 0
    pipeline = ClipPipeline.from_pretrained(tmp_path / "coats")
    pipeline.enable_attention_broadcast()
    assert pipeline.faster == read_note(clip)["faster"]
    pipeline.save_pretrained(tmp_path / "more")
    words = ("generate", tmp_path / "more", *CALL, "--faster", "broadcast", "--out", tmp_path / "a.png")
    assert exit_code(*words) == 0
    assert read_note(tmp_path / "a.png")["frames_sha256"] == read_note(clip)["frames_sha256"]
    other = load_pipeline(run, weights="raw")
    other.broadcast_file = settings  # of other weights
    other.save_pretrained(tmp_path / "raw")
    assert not (tmp_path / "raw" / "broadcast.json").exists()


def test_first_block_by_its_threshold_and_a_folder_of_one_way_only(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("generate", run, "--prompt", "red", "--steps", 3, "--format", "png", "--out", tmp_path / "out")
    assert exit_code(*words, "--faster", "first-block=1e9") == 0
    note = read_note(tmp_path / "out" / "0-red.png")
    assert note["faster"] == {"first_block": 1e9}
    assert exit_code(*words) == 2
    assert "the folder holds the clips of another call" in capsys.readouterr().err
    assert exit_code("regenerate", tmp_path / "out" / "0-red.png") == 0
    assert read_note(tmp_path / "out" / "0-red-again.png")["faster"] == {"first_block": 1e9}


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        (["magic"], "no such way"), (["broadcast=2"], "no such way"), (["first-block="], "no such way"),
        (["first-block=x"], "not a threshold"), (["first-block=-1"], "threshold of the first-block cache"),
        (["compile", "compile"], "twice"), (["compile", "broadcast"], "goes with no other way"),
    ],
)  # fmt: skip
def test_refusals(ways: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for way in ways for word in ("--faster", way)]
    assert exit_code("generate", run, "--prompt", "red", "--out", tmp_path / "a.mp4", *words) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compiled_is_told(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = list[object]()
    monkeypatch.setattr("torch.nn.Module.compile", lambda block: compiled.append(block))
    words = ("--prompt", "red", "--steps", 2, "--faster", "compile", "--faster", "first-block=0.2")
    assert exit_code("generate", run, *words, "--out", tmp_path / "a.png") == 0
    assert read_note(tmp_path / "a.png")["faster"] == {"compile": True, "first_block": 0.2}
    assert len(compiled) == 2
    assert exit_code("regenerate", tmp_path / "a.png") == 0
    assert len(compiled) == 4
