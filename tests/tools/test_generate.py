"""`mmdit generate` from the command line to the files, on a tiny random run."""

import json
import os
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import tiny
from commands import exit_code
from PIL import Image

from mmdit.clips.video import read_metadata


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate") / "run"
    tiny.write_run(folder)
    return folder


def generate(*words: object) -> int:
    return exit_code("generate", *words)


def listed(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != ".lock")


def frames_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_one_clip_with_all_that_it_takes_to_make_it_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "clip.mp4"
    assert generate(run, "--prompt", "a red coat", "--out", out, "--steps", 2, "--seed", 4) == 0
    assert str(out) in capsys.readouterr().out
    assert frames_of(out).shape == (3, 16, 32, 3)
    note = read_metadata(out)
    assert note | {
        "prompt": "a red coat", "label": None, "index": 0, "frames": 3, "size": "16x32", "fps": 8, "seed": 4,
        "steps": 2, "guidance": 2.0, "precision": "float32", "weights": "ema", "step": 5,
        "sampler": "FlowMatchEulerDiscreteScheduler",
    } == note  # fmt: skip
    assert {len(note[name]) for name in ("checkpoint", "config", "codec")} == {64}
    assert listed(out.parent) == ["clip.mp4", "clip.mp4.json"]
    beside = json.loads((out.parent / "clip.mp4.json").read_text())
    checkpoint = run / "checkpoints" / "step-0000005"
    assert beside == {**note, "file": "clip.mp4", "source": str(checkpoint)}  # no path of ours is in the clip


def test_a_sampler_by_name(run: Path, tmp_path: Path) -> None:
    names = ["euler", "heun", "dpm++2m-sde"]
    for name in names:
        words = ("--prompt", "red", "--steps", 3, "--sampler", name)
        assert generate(run, *words, "--out", tmp_path / f"{name}.mp4") == 0
        assert read_metadata(tmp_path / f"{name}.mp4")["sampler"] == name
    assert len({(tmp_path / f"{name}.mp4").read_bytes() for name in names}) == 3


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(run: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert generate(run, "--label", "dress", "--out", tmp_path / f"{name}.mp4", "--steps", 2, "--seed", seed) == 0
    a, b, c = ((tmp_path / f"{name}.mp4").read_bytes() for name in "abc")
    assert a == b != c


def test_several_prompts_and_labels_in_a_folder(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "many"
    words = ["--prompt", "a red coat", "--prompt", "a blue dress!", "--label", "coat", "--label", "1"]
    assert generate(run, *words, "--count", 2, "--out", out, "--steps", 2, "--batch", 3) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    names = ["0-a-red-coat.mp4", "1-a-red-coat.mp4", "2-a-blue-dress.mp4", "3-a-blue-dress.mp4"]
    assert [row["file"] for row in manifest] == names
    assert [row["label"] for row in manifest] == ["coat", "coat", "dress", "dress"]
    assert listed(out) == [*names, "manifest.json"]
    for row in manifest:
        assert read_metadata(out / row["file"]) == {
            key: value for key, value in row.items() if key not in ("file", "source")
        }


def test_a_clip_of_a_folder_is_the_one_made_alone_in_other_batches(run: Path, tmp_path: Path) -> None:
    for name, batch in (("one", 1), ("four", 4)):
        assert (
            generate(run, "--prompt", "red", "--count", 3, "--out", tmp_path / name, "--steps", 2, "--batch", batch)
            == 0
        )
    for file in sorted((tmp_path / "one").glob("*.mp4")):
        difference = frames_of(file).astype(int) - frames_of(tmp_path / "four" / file.name)
        assert np.abs(difference).max() <= 2  # a rounding of 1e-5 may tip over in the encoder


def test_images_gifs_sizes_and_rates(run: Path, tmp_path: Path) -> None:
    common = ("--prompt", "red", "--steps", 1)
    assert generate(run, *common, "--frames", 1, "--out", tmp_path / "a.png", "--size", "24x16") == 0
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (16, 24)
        assert json.loads(picture.info["comment"])["frames"] == 1
    assert generate(run, *common, "--frames", 5, "--out", tmp_path / "a.gif", "--fps", 10) == 0
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.info["duration"] == 100
    assert generate(run, *common, "--frames", 1, "--count", 2, "--out", tmp_path / "stills") == 0
    assert listed(tmp_path / "stills") == ["0-red.png", "1-red.png", "manifest.json"]
    assert generate(run, *common, "--count", 2, "--out", tmp_path / "gifs", "--format", "gif") == 0
    assert "0-red.gif" in os.listdir(tmp_path / "gifs")


def test_words_it_cannot_read_are_noted(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(run, "--prompt", "a zebra in a red coat", "--out", tmp_path / "a.mp4", "--steps", 1) == 0
    err = capsys.readouterr().err
    assert "note: words that the text encoder does not know, and cannot read: 'zebra', 'in'" in err


REFUSALS: list[tuple[list[str], str]] = [
    (
        ["--prompt", "red", "--guidance-rescale", "2"],
        "the rescaling of guidance is out of range, got 2.0, expected 0 to 1",
    ),
    (["--prompt", "red", "--guidance-projection", "radius=0"], "the radius of projected guidance is out of range"),
    ([], "nothing to generate from"),
    (["--prompt", "red", "--label", "cot"], "did you mean 'coat'"),
    (["--label", "7"], "0 to 2"),
    (["--prompt", "a", "--prompt", "b", "--label", "0", "--label", "1", "--label", "2"], "2 prompts and 3 labels"),
    (["--prompt", "red", "--steps", "0"], "steps"),
    (["--prompt", "red", "--steps", "10001"], "steps"),
    (["--prompt", "red", "--sampler", "ddpm"], "ddpm does not fit the process"),
    (["--prompt", "red", "--sampler", "eular"], "unknown sampler"),
    (["--prompt", "red", "--guidance", "nan"], "guidance"),
    (["--prompt", "red", "--guidance", "-1"], "guidance"),
    (["--prompt", "red", "--seed", "-1"], "seed"),
    (["--prompt", "red", "--count", "0"], "clips a prompt"),
    (["--prompt", "red", "--count", "100000", "--out", "many"], "at most 10000"),
    (["--prompt", "red", "--count", "2"], "--out clip --format mp4"),
    (["--prompt", "red", "--size", "64"], "HEIGHTxWIDTH"),
    (["--prompt", "red", "--size", "17x999"], "the nearest is 16x992"),
    (["--prompt", "red", "--size", "0x16"], "height"),
    (["--prompt", "red", "--frames", "0"], "number of frames"),
    (["--prompt", "red", "--frames", "many"], "many"),
    (["--prompt", "red", "--fps", "0"], "rate"),
    (["--prompt", "red", "--fps", "nan"], "rate"),
    (["--prompt", "red", "--fps", "0.001"], "rate is out of range, got 0.001, expected 0.01 to 1000 frames a second"),
    (["--prompt", "red", "--out", "clip.avi"], "mp4, gif, webp or png"),
    (["--prompt", "red", "--out", "used"], "is not empty, in used; name a new one\n"),
    (["--prompt", "red", "--count", "900", "--batch", "900", "--out", "x", "--size", "1024x1024"], "at most 4 GiB"),
    (["--prompt", "red", "--out", "file/clip.mp4"], "cannot be written"),
    (["--prompt", "red", "--format", "gif"], "gif for clip.mp4"),
    (["--prompt", "red", "--out", "x", "--format", "avi"], "mp4, gif, webp or png"),
    (["--prompt", "red", "--precision", "float16"], "precision"),
    (["--prompt", "red", "--weights", "best"], "ema, raw"),
    (["--prompt", "red", "--device", "warp"], "no such device here, in --device, got warp, expected auto, cpu, cuda,"),
    (["--prompt", "red", "--codec", "missing"], "no such codec"),
]


@pytest.mark.parametrize(("words", "said"), REFUSALS)
def test_refusals_are_one_line_and_leave_nothing_behind(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str],
    said: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").write_text("x")
    out = [] if "--out" in words else ["--out", "clip.mp4"]
    assert generate(run, *words, *out) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["file", "used"]


def test_what_no_model_is_needed_for_is_refused_before_one_is_loaded(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", load)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("x")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").write_text("x")
    for words, _ in (*REFUSALS[:17], *REFUSALS[21:32]):
        out = [] if "--out" in words else ["--out", "clip.mp4"]
        assert generate(run, *words, *out) == 2, words


def test_a_model_without_text_and_one_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_run(tmp_path / "labels", text_encoder="")
    assert generate(tmp_path / "labels", "--prompt", "red", "--out", tmp_path / "a.mp4") == 2
    assert "reads no prompts, got a prompt, expected a label" in capsys.readouterr().err
    tiny.write_run(tmp_path / "text", labels=False)
    assert generate(tmp_path / "text", "--label", "coat", "--out", tmp_path / "a.mp4") == 2
    assert "has no labels, got a label, expected a prompt" in capsys.readouterr().err


def test_missing_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(tmp_path / "none", "--prompt", "red", "--out", tmp_path / "a.mp4") == 2
    assert "no such folder" in capsys.readouterr().err
