"""`mmdit convert` as it is called: whole results, and bad files refused with nothing run and nothing written."""

import argparse
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from commands import exit_code
from diffusers import DiTTransformer2DModel
from safetensors import safe_open

from mmdit.models import DiT, from_dit, inflate, to_diffusers, to_dit

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"
State = dict[str, torch.Tensor]


def golden(name: str) -> State:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.startswith("weights.")]  # noqa: SIM118
        return {key.removeprefix("weights."): file.get_tensor(key) for key in keys}


def equal(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def no_remains(folder: Path, *left: str) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(left)


WRAPPED: dict[str, Callable[[State], Any]] = {
    "bare": lambda state: state,
    "ema": lambda state: {"model": {key: 0 * value for key, value in state.items()}, "ema": state, "opt": {"lr": 1e-4},
                          "args": argparse.Namespace(model="DiT-XL/2", lr=1e-4)},
    "model": lambda state: {"model": state, "epoch": 3},
}  # fmt: skip


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("name", ["dit_image_class", "latte_video_class"])
def test_published_files_there_and_back(
    name: str, wrapping: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = golden(name)
    torch.save(WRAPPED[wrapping](state), tmp_path / "in.pt")
    assert exit_code("convert", tmp_path / "in.pt", tmp_path / "model", "--heads", 4) == 0
    said = capsys.readouterr()
    frames = 1 if name.startswith("dit") else 5
    assert f"latents {frames}x8x8" in said.out and not said.err
    model = DiT.from_pretrained(tmp_path / "model")
    assert equal(to_dit(model), state)
    for back in ("back.pt", "back.pth", "back.safetensors"):
        assert exit_code("convert", tmp_path / "model", tmp_path / back, "--to", "dit") == 0
        read = safetensors.torch.load_file if back.endswith(".safetensors") else torch.load
        assert equal(read(tmp_path / back), state)
    no_remains(tmp_path, "in.pt", "model", "back.pt", "back.pth", "back.safetensors")


def test_a_safetensors_file_said_to_be_of_latte(tmp_path: Path) -> None:
    state = golden("latte_video_uncond")
    tables = {name: state.pop(name) for name in ("pos_embed", "temp_embed")}
    safetensors.torch.save_file(state, tmp_path / "in.safetensors")
    words = ("--from", "latte", "--heads", 4, "--sample-size", "4x8x8")
    assert exit_code("convert", tmp_path / "in.safetensors", tmp_path / "model", *words) == 0
    assert equal(to_dit(DiT.from_pretrained(tmp_path / "model")), state | tables)


def test_diffusers_folder_there_and_back(tmp_path: Path) -> None:
    state = golden("dit_image_class")
    torch.save(state, tmp_path / "in.pt")
    assert exit_code("convert", tmp_path / "in.pt", tmp_path / "theirs", "--heads", 4, "--to", "diffusers") == 0
    theirs = DiTTransformer2DModel.from_pretrained(tmp_path / "theirs")
    assert equal(theirs.state_dict(), to_diffusers(from_dit(state, sample_size=(1, 8, 8), num_heads=4))[0])
    theirs.save_pretrained(tmp_path / "pipeline" / "transformer")
    for folder in ("theirs", "pipeline"):  # heads and size are in the folder
        assert exit_code("convert", tmp_path / folder, tmp_path / f"{folder}.pt", "--to", "dit", "--spacing", 128) == 0
        assert equal(torch.load(tmp_path / f"{folder}.pt"), state)
    torch.save(theirs.state_dict(), tmp_path / "theirs_bare.pt")
    words = (tmp_path / "theirs_bare.pt", tmp_path / "model", "--heads", 4)
    assert exit_code("convert", *words) == 2  # the size is not in the weights
    assert exit_code("convert", *words, "--sample-size", "1x8x8") == 0
    model = DiT.from_pretrained(tmp_path / "model")
    assert model.config.timestep_spacing == 127
    assert equal(to_diffusers(model)[0], theirs.state_dict())


def test_inflated(tmp_path: Path) -> None:
    state = golden("dit_image_class")
    torch.save(state, tmp_path / "in.pt")
    assert exit_code("convert", tmp_path / "in.pt", tmp_path / "video", "--heads", 4, "--inflate", 3) == 0
    video = DiT.from_pretrained(tmp_path / "video")
    expected = inflate(from_dit(state, sample_size=(1, 8, 8), num_heads=4), 3)
    assert tuple(video.config.sample_size) == (3, 8, 8) and video.config.layout == "factorized"
    assert equal(video.state_dict(), expected.state_dict())


class Hostile:
    """A pickle that makes a file when it is read."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.made),)


HOSTILE: dict[str, Callable[[Path, Any], Any]] = {
    "bare": lambda path, bad: path.write_bytes(pickle.dumps(bad)),
    "zip": lambda path, bad: torch.save({"ema": golden("dit_image_class"), "args": bad}, path),
    "old": lambda path, bad: torch.save({"ema": bad}, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_hostile_pickle_runs_nothing(
    kind: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"in{suffix}"
    HOSTILE[kind](path, Hostile(tmp_path / "made"))
    assert exit_code("convert", path, tmp_path / "out", "--heads", 4) == 2
    said = capsys.readouterr()
    assert said.err.startswith("mmdit: these weights cannot be read, in ") and said.err.count("\n") == 1
    assert "code, posix.mkdir" in said.err or kind == "bare"
    no_remains(tmp_path, path.name)
    with path.open("rb") as file:  # it would have, had anything in it been run
        torch.load(file, weights_only=False) if kind != "bare" else pickle.load(file)
    assert (tmp_path / "made").is_dir()


def test_a_hostile_folder_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state, config = to_diffusers(from_dit(golden("dit_image_class"), sample_size=(1, 8, 8), num_heads=4))
    DiTTransformer2DModel(**config).save_pretrained(tmp_path / "in", safe_serialization=False)
    torch.save(state | {"proj_out_2.bias": Hostile(tmp_path / "made")}, tmp_path / "in" / "diffusion_pytorch_model.bin")
    assert exit_code("convert", tmp_path / "in", tmp_path / "out") == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("mmdit: this is no diffusers folder, in ")
    no_remains(tmp_path, "in")


def damaged(kind: str, path: Path) -> None:
    state = golden("dit_image_class")
    torch.save(state, path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"<html>not found</html>")
    else:
        other: dict[str, Any] = {
            "a list": [torch.zeros(3)],
            "a tensor": torch.zeros(3),
            "no tensors": {"ema": {"x": 3}},
            "another network": {"conv.weight": torch.zeros(3)},
            "wrong shapes": state | {"blocks.1.attn.proj.weight": torch.zeros(64, 63)},
            "more numbers than stored": {"x_embedder.proj.weight": torch.zeros(1).expand(10**12)},
            "integers": {key: value.int() for key, value in state.items()},
            "another table": state | {"pos_embed": state["pos_embed"].flip(1)},
        }
        torch.save(other[kind], path)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("truncated", "cannot be read"),
        ("empty", "cannot be read"),
        ("text", "cannot be read"),
        ("a list", "no state dict, in .*, got list"),
        ("a tensor", "no state dict, in .*, got Tensor"),
        ("no tensors", "no state dict, in .*, got dict 'x'"),
        ("another network", "no known network has such weights, got conv.weight, expected one of dit, latte,"),
        ("wrong shapes", r"1 tensors do not go .* in blocks.1.attn.proj.weight, got \(64, 63\), expected \(64, 64\)"),
        ("more numbers than stored", "no state dict"),
        ("integers", "no state dict"),
        ("another table", "table is not the paper's, and the network holds no other, in pos_embed, got a difference"),
    ],
)
def test_bad_files_are_refused_in_one_line(
    kind: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(kind, tmp_path / "in.pt")
    assert exit_code("convert", tmp_path / "in.pt", tmp_path / "out", "--heads", 4) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
    assert re.search(line, said.err), said.err
    no_remains(tmp_path, "in.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ""])
def test_a_truncated_safetensors_file_or_folder(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from_dit(golden("dit_image_class"), sample_size=(1, 8, 8), num_heads=4).save_pretrained(tmp_path / "in")
    weights = tmp_path / "in" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert exit_code("convert", weights if suffix else tmp_path / "in", tmp_path / "out") == 2
    assert capsys.readouterr().err.count("\n") == 1
    no_remains(tmp_path, "in")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("out", "--heads", 5), "does not divide into heads"),
        (("out", "--heads", 0), "impossible sizes"),
        (("out",), "number of heads .* say num_heads"),
        (("out", "--from", "sora"), "unknown source, in --from, got 'sora', expected one of dit, latte, diffusers"),
        (("out", "--from", "diffusers", "--heads", 4), "keys are not those of diffusers' DiTTransformer2DModel"),
        (("out", "--from", "latte", "--heads", 4), "Latte's blocks come in pairs, got 3"),
        (("out", "--to", "sd3"), "unknown target"),
        (("out", "--to", "dit"), "does not write this, got .*out, expected a file that ends in .pt, .pth, .safet"),
        (("out.pt",), "does not write this, got .*out.pt, expected the name of a folder"),
        (("in.safetensors", "--to", "dit"), "the output is there already"),
        (("there",), "the output is there already"),
        (("in.safetensors/out",), "the output cannot be written"),
        (("out", "--sample-size", "8x8"), "not a size, in --sample-size, got '8x8'"),
        (("out", "--sample-size", "1x16x16", "--heads", 4), "position table is for another grid"),
        (("out", "--inflate", 0, "--heads", 4), "too few frames"),
        (("out", "--inflate", 3, "--to", "diffusers", "--heads", 4), "cannot hold this network, got layout factorized"),
    ],
)
def test_wrong_words_are_refused(
    words: tuple[Any, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    safetensors.torch.save_file(golden("dit_image_class"), tmp_path / "in.safetensors")
    (tmp_path / "there").mkdir()
    out, *rest = words
    assert exit_code("convert", tmp_path / "in.safetensors", tmp_path / out, *rest) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and not said.out
    assert re.search(line, said.err), said.err
    no_remains(tmp_path, "in.safetensors", "there")
    no_remains(tmp_path / "there")


def test_what_is_no_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    for source, line in [
        ("none.pt", "no such file"),
        ("weights.bin", "ends in '.bin'"),
        ("folder", "this is no diffusers folder"),
        ("run", "got no config.json, expected a network's folder, or a pipeline's or a checkpoint's with transformer/"),
        ("run", "of a run, name a checkpoint: RUN/checkpoints/step-N"),
        ("other", "got UNet2DModel, expected DiT or DiTTransformer2DModel"),
    ]:
        assert exit_code("convert", tmp_path / source, tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert line in said and said.count("\n") == 1
    no_remains(tmp_path, "weights.bin", "folder", "run", "other")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(golden("dit_image_class"), tmp_path / "in.pt")
    monkeypatch.setenv("MMDIT_FAULT", "full@out:begin")
    assert exit_code("convert", tmp_path / "in.pt", tmp_path / "out", "--heads", 4) == 4
    no_remains(tmp_path, "in.pt")
