"""`mmdit export`: the folder makes the run's clips, here and in plain diffusers, and its card says what it is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from commands import exit_code
from huggingface_hub import HfApi
from safetensors import safe_open

from mmdit import files
from mmdit.pipelines import load_pipeline
from mmdit.pipelines.output import read_note

LOAD = """
import sys
from diffusers import DiffusionPipeline
from mmdit.clips.video import clip_to_frames
from mmdit.pipelines.wishes import frames_hash
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], custom_pipeline=sys.argv[1], trust_remote_code=True)
(clip,) = pipeline("a red coat", num_inference_steps=2, output_type="pt").frames
print(frames_hash(clip_to_frames(clip)))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "run"
    tiny.write_run(folder)
    files.write_text(folder / "config.yaml", f"steps: 5\ndata:\n  store: {folder}/secret/coats\n")
    rows = [{"step": 1, "loss": 2.0}, {"step": 5, "loss": 1.25, "val_loss": 1.5}]
    files.write_text(folder / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def clip(run: Path) -> Path:
    out = run.parent / "clip.mp4"
    assert exit_code("generate", run, "--prompt", "a red coat", "--steps", 2, "--out", out) == 0
    samples = run / "samples" / "step-0000005"
    samples.mkdir(parents=True)
    (samples / "00.mp4").write_bytes(out.read_bytes())
    files.write_json(samples / "samples.json", [{"file": "00.mp4", "prompt": "a red coat", "label": None}])
    return out


@pytest.fixture(scope="module")
def exported(run: Path, clip: Path) -> Path:
    assert exit_code("export", run, run.parent / "coats") == 0
    return run.parent / "coats"


def test_the_folder_makes_the_runs_clips(exported: Path, clip: Path, tmp_path: Path) -> None:
    assert exit_code("regenerate", clip, "--checkpoint", exported, "--out", tmp_path / "a.mp4") == 0
    assert read_note(tmp_path / "a.mp4") == read_note(clip)


def test_plain_diffusers_loads_the_folder(exported: Path, clip: Path, tmp_path: Path) -> None:
    env = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", LOAD, str(exported)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[-1] == read_note(clip)["frames_sha256"]


def test_the_card_says_what_it_is_and_no_folder_of_ours(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "unknown" and "To be filled in" in card and header["library_name"] == "diffusers"
    assert header["widget"] == [{"text": "a red coat", "output": {"url": "examples/00.mp4"}}]
    assert "| loss | 2 (step 1) | 1.25 (step 5) |" in card and "| val_loss | 1.5 (step 5) |" in card
    assert "store: coats" in card and "labels: coat, dress, skirt" in card and "trained for 5 steps" in card
    assert "[a red coat](examples/00.mp4)" in card and (exported / "examples" / "00.mp4").is_file()
    texts = [path.read_text() for path in exported.rglob("*") if path.suffix in (".md", ".json", ".py")]
    assert not any(str(exported.parent) in text for text in texts)


def test_examples_are_made_and_the_licence_is_said(run: Path, tmp_path: Path) -> None:
    words = ("--licence", "apache-2.0", "--example", "a red coat", "--example", 'a "blue" dress')
    assert exit_code("export", run, tmp_path / "coats", *words) == 0
    card = (tmp_path / "coats" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "apache-2.0" and "## Licence\n\napache-2.0." in card and "To be filled in" not in card
    assert [row["text"] for row in header["widget"]] == ["a red coat", 'a "blue" dress']
    note = read_note(tmp_path / "coats" / header["widget"][1]["output"]["url"])
    assert note["prompt"] == 'a "blue" dress' and note["frames"] == 3
    labels_only = tiny.write_run(tmp_path / "run", text_encoder="")
    assert exit_code("export", labels_only, tmp_path / "labels", "--example", "dress") == 0
    assert read_note(tmp_path / "labels" / "examples" / "00.mp4")["label"] == "dress"
    assert exit_code("export", labels_only, tmp_path / "other", "--example", "dres") == 2
    again = ("regenerate", tmp_path / "coats" / "examples" / "01.mp4", "--checkpoint", tmp_path / "coats")
    assert exit_code(*again, "--out", tmp_path / "again.mp4") == 0


def test_examples_are_sampled_as_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = tiny.write_run(tmp_path / "run", labels=False, null_conditions=[])  # always told, so never guided
    assert exit_code("export", told, tmp_path / "out", "--example", "a red coat") == 0
    assert read_note(tmp_path / "out" / "examples" / "00.mp4")["guidance"] == 1
    pipeline = load_pipeline(told)
    pipeline.register_to_config(sampling={"steps": 3, "guidance": 1.5})
    pipeline.save_pretrained(tmp_path / "own")
    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", lambda *args, **more: pytest.fail("a model is loaded"))
    assert exit_code("export", tmp_path / "own", tmp_path / "none", "--example", "a red coat") == 2
    assert "guidance 1.5" in capsys.readouterr().err


def test_examples_take_the_steps_and_guidance_of_a_pipeline(run: Path, tmp_path: Path) -> None:
    pipeline = load_pipeline(run)
    pipeline.register_to_config(sampling={"steps": 3, "guidance": 1.5})
    pipeline.save_pretrained(tmp_path / "own")
    assert exit_code("export", tmp_path / "own", tmp_path / "out", "--example", "a red coat") == 0
    note = read_note(tmp_path / "out" / "examples" / "00.mp4")
    assert (note["steps"], note["guidance"]) == (3, 1.5)


def test_bfloat16(run: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("export", run, tmp_path / "half", "--dtype", "bfloat16") == 0
    kinds = {}
    for part in ("transformer", "text_encoder", "vae"):
        (path,) = (tmp_path / "half" / part).glob("*.safetensors")
        with safe_open(path, "pt") as tensors:
            kinds[part] = {str(tensors.get_tensor(name).dtype) for name in tensors.keys()}  # noqa: SIM118
    assert kinds == {"transformer": {"torch.bfloat16"}, "text_encoder": {"torch.bfloat16"}, "vae": {"torch.float32"}}
    assert "weights in the network, in bfloat16." in (tmp_path / "half" / "README.md").read_text()
    pipeline = load_pipeline(tmp_path / "half")
    assert pipeline("a red coat", num_inference_steps=2, output_type="pt").frames.isfinite().all()
    capsys.readouterr()
    assert exit_code("regenerate", clip, "--checkpoint", tmp_path / "half", "--out", tmp_path / "a.mp4") == 3
    assert "dtype bfloat16 (was None)" in capsys.readouterr().err


def test_push_uploads_every_file_by_the_hubs_own_client(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: dict[str, Any] = {}

    def create_repo(self: HfApi, repo_id: str, **options: Any) -> str:
        made["repo"] = (repo_id, options["private"])
        return f"https://hub/{repo_id}"

    def upload_folder(self: HfApi, *, repo_id: str, folder_path: Path, **options: Any) -> Any:
        made["files"] = sorted(p.relative_to(folder_path).as_posix() for p in folder_path.rglob("*") if p.is_file())
        if repo_id == "me/down":
            raise OSError("the line is down")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    assert exit_code("export", run, tmp_path / "coats", "--push", "me/coats") == 0
    assert "pushed: https://hub/me/coats" in capsys.readouterr().out
    there = sorted(p.relative_to(tmp_path / "coats").as_posix() for p in (tmp_path / "coats").rglob("*") if p.is_file())
    assert made == {"repo": ("me/coats", True), "files": there}
    assert "model_index.json" in there and "pipeline.py" in there
    assert 'custom_pipeline="me/coats"' in (tmp_path / "coats" / "README.md").read_text()
    assert exit_code("export", run, tmp_path / "again", "--push", "me/down") == 4
    assert "the upload failed, in me/down, got the line is down" in capsys.readouterr().err
    assert (tmp_path / "again" / "model_index.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["out", "--dtype", "float8"], "unknown dtype"),
        (["out", "--push", "a/b/c"], "not a repository's name"),
        (["out", "--licence", "Apache 2"], "not a licence as the hub writes it"),
        (["out", "--example", "a\0b"], "NUL"),
        (["there"], "there already"),
    ],
)
def test_refusals(
    words: list[str], said: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("mmdit.pipelines.loading.load_pipeline", None)  # nothing is loaded
    (tmp_path / "there").mkdir()
    assert exit_code("export", run, *words) == 2
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["there"]
