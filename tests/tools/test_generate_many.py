"""`mmdit generate` with a list of prompts: a folder that goes on where it was, on one process or two."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from commands import exit_code
from PIL import Image

from mmdit import files
from mmdit.pipelines import wishes
from mmdit.pipelines.output import read_note, write_output
from mmdit.pipelines.wishes import frames_hash

ROOT = Path(__file__).parents[2]
PROMPTS = """\
prompt,label,negative,seed,out,frames,size,guidance
a red coat,coat,blue,,,,,
a blue dress,,,7,blue/dress.gif,,,
,skirt,,,still,1,24x16,1
a red coat,,,7,,,,3
"""
NAMES = ["0-a-red-coat.mp4", "3-a-red-coat.mp4", "blue/dress.gif", "manifest.json", "still.png"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    tiny.write_run(folder / "run")
    (folder / "prompts.csv").write_text(PROMPTS)
    return folder / "run"


def words(run: Path, out: Path) -> list[object]:
    return [run, "--prompts", run.parent / "prompts.csv", "--out", out, "--steps", 2, "--batch", 2]


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def whole(run: Path) -> Path:
    """The folder as an uninterrupted call of one process leaves it."""
    assert exit_code("generate", *words(run, run.parent / "whole")) == 0
    return run.parent / "whole"


def test_every_row_is_a_file_that_says_what_it_shows(whole: Path) -> None:
    assert sorted(hashes(whole)) == NAMES
    rows = json.loads((whole / "manifest.json").read_text())
    assert [row["file"] for row in rows] == ["0-a-red-coat.mp4", "blue/dress.gif", "still.png", "3-a-red-coat.mp4"]
    assert [(row["seed"], row["index"]) for row in rows] == [(0, 0), (7, 0), (0, 2), (7, 0)]
    assert [row["negative"] for row in rows] == ["blue", "", "", ""]
    assert [row["guidance"] for row in rows] == [2.0, 2.0, 1.0, 3.0]
    assert (rows[2]["frames"], rows[2]["size"], rows[2]["label"], rows[2]["prompt"]) == (1, "24x16", "skirt", None)
    assert len({row["frames_sha256"] for row in rows}) == 4
    for row in rows:
        assert read_note(whole / row["file"]).items() <= row.items()


def test_what_is_there_and_fits_is_not_made_again(
    run: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hashes(whole)
    (whole / "still.png").unlink()
    (whole / "blue/dress.gif").write_bytes(b"cut off")
    made: list[str] = []
    make = wishes.make_frames

    def counted(pipeline: Any, notes: Any, *more: Any) -> Any:
        made.extend(note["prompt"] for note in notes)
        return make(pipeline, notes, *more)

    monkeypatch.setattr(wishes, "make_frames", counted)
    assert exit_code("generate", *words(run, whole)) == 0
    assert hashes(whole) == before
    assert made == ["a blue dress", None]
    capsys.readouterr()
    assert exit_code("generate", *words(run, whole), "--seed", 1) == 2
    assert "the folder holds the clips of another call" in capsys.readouterr().err
    assert exit_code("generate", *words(run, whole), "--count", 2) == 2
    assert hashes(whole) == before


def test_sigterm_leaves_whole_files_and_the_same_call_goes_on(
    run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, make, calls = tmp_path / "out", wishes.make_frames, list[int]()

    def interrupted(pipeline: Any, notes: Any, *more: Any) -> Any:
        calls.append(len(notes))
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return make(pipeline, notes, *more)

    monkeypatch.setattr(wishes, "make_frames", interrupted)
    assert exit_code("generate", *words(run, out)) == 4
    assert "stopped by SIGTERM" in capsys.readouterr().err
    there = hashes(out)
    assert list(there) == ["0-a-red-coat.mp4", "manifest.json"]
    assert ["frames_sha256" in row for row in json.loads((out / "manifest.json").read_text())] == [1, 0, 0, 0]
    monkeypatch.setattr(wishes, "make_frames", make)
    assert exit_code("generate", *words(run, out)) == 0
    assert hashes(out) == hashes(whole)


def test_a_folder_in_use_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with files.lock(tmp_path / "out"):
        assert exit_code("generate", *words(run, tmp_path / "out")) == 2
    assert "the folder is in use" in capsys.readouterr().err
    assert hashes(tmp_path / "out") == {}


def test_two_processes_make_the_same_files(run: Path, whole: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               ROOT / "tools" / "generate.py", *words(run, tmp_path / "two")]  # fmt: skip
    done = subprocess.run(
        [*map(str, command)], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("generated: ") == 1
    assert "(2 mp4 and 1 gif and 1 png files and manifest.json)" in done.stdout
    assert hashes(tmp_path / "two") == hashes(whole)


def test_a_sheet_and_webps(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    said = ("--prompt", "red", "--count", 2, "--steps", 1, "--format", "webp", "--sheet")
    assert exit_code("generate", run, *said, "--out", out) == 0
    assert sorted(hashes(out)) == ["0-red.webp", "1-red.webp", "manifest.json", "sheet.png"]
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.size == (4 + 3 * 36, 2 * (16 + 4 + 22) + 4)  # two rows of three frames 32 wide
    assert exit_code("generate", run, "--prompt", "red", "--out", tmp_path / "a.webp", "--sheet") == 2
    assert "a sheet needs a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("red,,,,a.mp4,,17x999,", "line 6: the model cannot make this size"),
        ("red,,,,a.mp4,,17x999,", "the nearest is 16x992"),
        ("red,cot,,,,,,", "line 6: unknown label"),
        ("red,,,,still.png,,,", "line 6, got still.png"),
        ("red,,,,a.mp4,0,,", "line 6: the number of frames is out of range, got 0"),
        ("red,,,,still.png/a.mp4,,,", "a file and a folder of one name"),
        (f"red,,,,{'y' * 250}.mp4,,,", "the name of a file is too long"),
    ],
)
def test_a_bad_row_is_refused_before_a_model_is_loaded(
    row: str, said: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", load)
    (tmp_path / "prompts.csv").write_text(f"{PROMPTS}{row}\n")
    assert exit_code("generate", run, "--prompts", tmp_path / "prompts.csv", "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["prompts.csv"]


def test_negative_prompts_and_ways_to_guide_change_what_is_made(run: Path, tmp_path: Path) -> None:
    plain = ("--prompt", "a red coat", "--steps", 3)
    calls: dict[str, tuple[object, ...]] = {
        "plain": (), "negative": ("--negative", "blue"), "interval": ("--guidance-interval", "700-1000"),
        "none": ("--guidance-interval", "0-1"), "alone": ("--guidance", 1),
        "rescaled": ("--guidance-rescale", 0.7), "projected": ("--guidance-projection", "parallel=0, momentum=-0.5"),
    }  # fmt: skip
    for name, more in calls.items():
        assert exit_code("generate", run, *plain, *more, "--out", tmp_path / f"{name}.mp4") == 0
    made = {name: read_note(tmp_path / f"{name}.mp4")["frames_sha256"] for name in calls}
    assert made.pop("none") == made["alone"]  # no timestep of three lies in it
    assert len(set(made.values())) == len(made) == 6


@pytest.mark.parametrize(
    "text", ["0", "parallel", "parallel=", "parallel=x", "eta=0", "parallel=0;radius=15", "", "parallel=0,parallel=1"]
)
def test_what_is_no_projection(text: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.mp4"
    assert exit_code("generate", run, "--prompt", "red", "--guidance-projection", text, "--out", out) == 2
    said = f"not a projection of guidance, in --guidance-projection, got {text!r}, expected parallel, radius, momentum"
    assert said in capsys.readouterr().err


def test_a_guided_file_is_made_again(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    how = ("--guidance-rescale", 0.5, "--guidance-projection", "radius=2", "--guidance", 4, "--steps", 2)
    assert exit_code("generate", run, "--prompt", "red", *how, "--out", tmp_path / "a.png", "--frames", 1) == 0
    note = read_note(tmp_path / "a.png")
    assert note["guidance_rescale"] == 0.5
    assert note["guidance_projection"] == {"parallel": 0.0, "radius": 2.0, "momentum": 0.0}
    assert regenerate(tmp_path / "a.png") == 0
    assert "\nidentical: " in capsys.readouterr().out


def test_files_made_before_there_were_more_ways_to_guide_are_kept(run: Path, tmp_path: Path) -> None:
    """Their notes say nothing of these, which is as much as without them."""
    words = ("generate", run, "--prompt", "red", "--steps", 2, "--format", "png", "--frames", 1, "--out", tmp_path)
    assert exit_code(*words) == 0
    (file,) = tmp_path.glob("*.png")
    older = {key: value for key, value in read_note(file).items() if not key.startswith(("guidance_r", "guidance_p"))}
    (tmp_path / "manifest.json").write_text(json.dumps([{"file": file.name, **older}]))
    write_output(file, np.zeros((1, 16, 32, 3), np.uint8), 8, older)
    assert exit_code(*words) == 0
    assert read_note(file) == older
    assert exit_code(*words, "--guidance-rescale", 0.5) == 2
    assert read_note(file) == older


def regenerate(*said: object) -> int:
    return exit_code("regenerate", *said)


@pytest.mark.parametrize("name", ["0-a-red-coat.mp4", "blue/dress.gif", "still.png"])
def test_a_file_is_made_again_pixel_for_pixel(
    name: str, run: Path, whole: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / f"again{Path(name).suffix}"
    assert regenerate(whole / name, "--out", out) == 0
    source = run / "checkpoints" / "step-0000005"
    said = f"made from: {source}, as is said beside the file\nidentical: {out}\n"
    assert capsys.readouterr().out == said
    assert out.read_bytes() == (whole / name).read_bytes()


def test_a_file_of_a_large_batch_is_made_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a batch as large as it was made in: sums of another batch may run in another order."""
    words = (
        "--prompt",
        "red",
        "--prompt",
        "a blue dress",
        "--prompt",
        "coat",
        "--steps",
        2,
        "--sampler",
        "dpm++2m-sde",
    )
    assert exit_code("generate", run, *words, "--out", tmp_path / "out", "--format", "webp") == 0
    capsys.readouterr()
    make, sizes = wishes.make_frames, list[int]()

    def counted(pipeline: Any, notes: Any) -> Any:
        sizes.append(len(notes))
        return make(pipeline, notes)

    monkeypatch.setattr(wishes, "make_frames", counted)
    assert regenerate(tmp_path / "out" / "1-a-blue-dress.webp") == 0
    assert "\nidentical: " in capsys.readouterr().out
    assert sizes == [3]
    assert (tmp_path / "out" / "1-a-blue-dress-again.webp").is_file()


def test_what_differs_is_said(run: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_run(tmp_path / "other", step=6)
    name = whole / "0-a-red-coat.mp4"
    # the same weights under another hash: identical, although
    assert regenerate(name, "--checkpoint", tmp_path / "other", "--out", tmp_path / "a.mp4") == 0
    assert "although: checkpoint " in (said := capsys.readouterr().out) and "step 6 (was 5)" in said
    tiny.write_run(tmp_path / "third", step=7)
    ema, raw = (tmp_path / "third/checkpoints/step-0000007" / at for at in ("ema", "."))
    weights = "transformer/diffusion_pytorch_model.safetensors"
    (ema / weights).write_bytes((raw / weights).read_bytes())
    (raw / "manifest.json").unlink()
    from mmdit.training.checkpoint import write_manifest

    write_manifest(raw)
    assert regenerate(name, "--checkpoint", tmp_path / "third", "--out", tmp_path / "b.mp4") == 3
    err = capsys.readouterr().err
    assert "the pixels are not identical" in err and "step 7 (was 5)" in err and err.count("\n") == 1
    assert read_note(tmp_path / "b.mp4")["frames_sha256"] != read_note(name)["frames_sha256"]


def test_what_cannot_be_made_again(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = tmp_path / "a.mp4"
    alone.write_bytes((whole / "0-a-red-coat.mp4").read_bytes())
    assert regenerate(alone) == 2
    assert "name it: --checkpoint" in capsys.readouterr().err
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    refused = {"b.png": "does not say how", "none.mp4": "no such file"}
    for file, said in ((tmp_path / name, said) for name, said in refused.items()):
        assert regenerate(file) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch", [10**9, 0]), ("batch", [1, 1]), ("size", 5), ("fps", 0), ("steps", 0), ("seed", "x"),
        ("threads", 10**9),
        ("given", {"image": {"file": "../a.png", "sha256": "0"}}), ("faster", {"broadcast": {"every": 3}}),
        ("guidance_interval", 5), ("weights", "best"), ("source", 5), ("source", "owner/model"), ("source", "~"),
        ("source", "file:///tmp"), ("label", "shoe"), ("sampler", "eular"), ("faster", {"magic": 1}),
        ("sampler", "ddpm"), ("guidance", "3"),
        ("guidance_rescale", 2), ("guidance_rescale", "0"), ("guidance_projection", 0), ("guidance_projection", {}),
        ("guidance_projection", {"parallel": "0", "radius": None, "momentum": 0}),
        ("size", "16000000x32"),
    ],
)  # fmt: skip
def test_a_hostile_note_is_refused_before_a_model_is_loaded(
    key: str, value: object, run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", load)
    note = {**read_note(whole / "still.png"), "source": str(run), key: value}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.png.json").write_text(json.dumps(note))
    assert regenerate(tmp_path / "a.png") == 2
    assert capsys.readouterr().err.count("\n") == 1
    for broken in ("{", "[" * 100_000):
        (tmp_path / "a.png.json").write_text(broken)
        assert regenerate(tmp_path / "a.png") == 2
        assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"labels": False}, "this model has no labels"),
        ({"null_conditions": []}, "this model was never trained without a prompt"),
    ],
)
def test_a_checkpoint_that_cannot_make_it_is_refused_before_it_is_loaded(
    other: dict[str, Any], said: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", lambda *args, **more: 1 / 0)
    tiny.write_run(tmp_path / "other", **other)
    assert regenerate(whole / "still.png", "--checkpoint", tmp_path / "other", "--out", tmp_path / "a.png") == 2
    err = capsys.readouterr().err
    assert f"does not fit the checkpoint, in {whole / 'still.png'}: {said}" in err and err.count("\n") == 1


def test_a_note_names_no_folder_by_halves(run: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                          capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """What lies beside a file may have come with it: a name that this folder gives a meaning to is not followed."""
    tiny.write_run(tmp_path / "owner" / "model")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes((whole / "still.png").read_bytes())
    (tmp_path / "a.png.json").write_text(json.dumps({"source": "owner/model"}))
    assert regenerate("a.png") == 2
    assert "got owner/model, expected the absolute path of a folder; name it: --checkpoint" in capsys.readouterr().err
    assert regenerate("a.png", "--checkpoint", "owner/model") == 0
    assert capsys.readouterr().out.startswith("made from: owner/model/checkpoints/step-0000005\nidentical: ")


def test_what_mmdit_did_not_make_is_not_overwritten(
    run: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def left_alone(path: Path, *said: object) -> None:
        before = path.read_bytes()
        assert exit_code(*map(str, said)) == 2
        assert f"mmdit did not make it, in {path}; name another --out, or remove it" in capsys.readouterr().err
        assert path.read_bytes() == before

    words = ("generate", run, "--prompt", "red", "--frames", 1, "--steps", 1, "--size", "16x32", "--out")
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    (tmp_path / "letter.mp4").write_text("not a video")
    (tmp_path / "new.png.json").write_text('{"theirs": 1}')
    (tmp_path / "other.png.json").write_text("not json")
    left_alone(tmp_path / "photo.png", *words, tmp_path / "photo.png")
    left_alone(tmp_path / "letter.mp4", *words, tmp_path / "letter.mp4")
    left_alone(tmp_path / "new.png.json", *words, tmp_path / "new.png")
    left_alone(tmp_path / "other.png.json", *words, tmp_path / "other.png")
    left_alone(tmp_path / "photo.png", "regenerate", whole / "still.png", "--out", tmp_path / "photo.png")
    for seed in (0, 1):  # its own is made anew
        assert exit_code(*words, tmp_path / "own.png", "--seed", seed) == 0
        assert read_note(tmp_path / "own.png")["seed"] == seed


def test_the_hash_is_of_shape_and_values() -> None:
    import numpy as np

    frames = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
    assert frames_hash(frames) == frames_hash(frames.copy())
    assert frames_hash(frames) != frames_hash(frames.reshape(1, 2, 8, 3))
    assert frames_hash(frames) != frames_hash(frames[:, ::-1])
