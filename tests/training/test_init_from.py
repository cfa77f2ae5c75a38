"""A new run from weights that there are: what fits is taken, and all of it is told."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import change_state
from safetensors.torch import load_file

from mmdit.errors import Refused
from mmdit.models import DiT
from mmdit.training.checkpoint import find_checkpoint, read_state
from mmdit.training.loop import train
from mmdit.training.processes import make_accelerator
from mmdit.training.resume import resume
from mmdit.training.run import Run, begin_run

FILE = "transformer/diffusion_pytorch_model.safetensors"
LABELS = "y_embedder.embedding_table.weight"


@pytest.fixture
def old(recipe: Any, tmp_path: Path) -> Path:
    train(recipe(steps=2), tmp_path / "old")
    return tmp_path / "old"


def begin(config: Any, folder: Path) -> Run:
    run = begin_run(config, folder, make_accelerator(config))
    resume(run)
    return run


def report(folder: Path) -> Any:
    return json.loads((folder / "init.json").read_text())


def assert_holds(run: Run, weights: dict[str, torch.Tensor]) -> None:
    state = run.trainee.transformer.state_dict()
    assert [name for name, value in weights.items() if not torch.equal(state[name], value)] == []
    assert all(torch.equal(run.ema.averages[f"transformer.{name}"], value) for name, value in weights.items())


@pytest.mark.parametrize("which", ["ema", "raw"])
def test_a_run_or_its_checkpoint_gives_its_weights(recipe: Any, old: Path, tmp_path: Path, which: str) -> None:
    checkpoint = find_checkpoint(old)
    weights = load_file(checkpoint / ("ema" if which == "ema" else ".") / FILE)
    for number, source in enumerate((old, checkpoint)):
        folder = tmp_path / str(number)
        run = begin(recipe(init_from=str(source), init_weights=which), folder)
        assert run.step == 0 and all(not optimizer.state for optimizer in run.optimizers)
        assert_holds(run, weights)
        told = report(folder)
        assert set(weights) < set(told["loaded"]) and any("text_encoder." in name for name in told["loaded"])
        assert told["inflated"] == told["left_out"] == told["fresh"] == []


def test_a_folder_with_a_network_alone_leaves_the_text_embedding_out(recipe: Any, old: Path, tmp_path: Path) -> None:
    run = begin(recipe(init_from=str(find_checkpoint(old) / "ema" / "transformer")), tmp_path / "run")
    weights = load_file(find_checkpoint(old) / "ema" / FILE)
    text = [name for name in weights if name.startswith("text_embedder.")]
    assert_holds(run, {name: value for name, value in weights.items() if name not in text})
    told = report(tmp_path / "run")
    assert set(told["left_out"]) == {f"{name} (of another text encoder)" for name in text} and text
    assert set(told["fresh"]) == set(text)


def test_an_image_network_is_inflated_into_a_video_network(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=2, model__layout="space"), tmp_path / "image")
    run = begin(recipe(init_from=str(tmp_path / "image")), tmp_path / "video")
    told = report(tmp_path / "video")
    assert told["inflated"] and told["fresh"] == told["left_out"] == []
    weights, state = load_file(find_checkpoint(tmp_path / "image") / "ema" / FILE), run.trainee.transformer.state_dict()
    assert_holds(run, {name: value for name, value in weights.items() if state[name].shape == value.shape})
    image = DiT.from_pretrained(find_checkpoint(tmp_path / "image") / "ema" / "transformer")
    latents, labels, text = torch.randn(1, 4, 3, 4, 4), torch.tensor([0]), torch.randn(1, 16)
    video = run.trainee.transformer.eval()
    with torch.no_grad():
        whole = video(latents, torch.tensor([0.5]), labels=labels, text=text)
        for frame in range(3):
            alone = image(latents[:, :, frame : frame + 1], torch.tensor([0.5]), labels=labels, text=text)
            assert torch.allclose(whole[:, :, frame : frame + 1], alone, atol=1e-5)


def test_label_vectors_go_by_name(recipe: Any, old: Path, tmp_path: Path) -> None:
    names = read_state(find_checkpoint(old))["label_names"]
    change_state(find_checkpoint(old), label_names=[*reversed(names[1:]), "gone"])
    run = begin(recipe(init_from=str(old), seed=7), tmp_path / "run")
    table = load_file(find_checkpoint(old) / "ema" / FILE)[LABELS]
    taken = run.trainee.transformer.state_dict()[LABELS]
    count = len(names)
    for row in range(1, count):
        assert torch.equal(taken[row], table[count - 1 - row])
    assert torch.equal(taken[-1], table[-1])
    fresh = begin(recipe(seed=7), tmp_path / "fresh").trainee.transformer.state_dict()[LABELS]
    assert torch.equal(taken[0], fresh[0]) and not torch.equal(taken[0], table[0])
    told = report(tmp_path / "run")
    assert told["fresh"] == [f"{LABELS} of label {names[0]!r}"]
    assert told["left_out"] == [f"{LABELS} of label 'gone'"]


def test_other_sizes_are_told_and_what_fits_nowhere_is_refused(recipe: Any, old: Path, tmp_path: Path) -> None:
    begin(recipe(init_from=str(old), model__depth=1), tmp_path / "shorter")
    left = report(tmp_path / "shorter")["left_out"]
    assert left and all(line.startswith("blocks.1.") and line.endswith("(not in this network)") for line in left)
    with pytest.raises(
        Refused, match=r"no block of the network fits .*got blocks\.0\..* \(.*32.*\), expected \(.*64.*\)"
    ):
        begin(recipe(init_from=str(old), model__hidden_size=64), tmp_path / "wider")
    with pytest.raises(Refused, match="nothing to start from"):
        begin(recipe(init_from=str(tmp_path / "nowhere")), tmp_path / "none")
    with pytest.raises(Refused, match="no network of mmdit"):
        begin(recipe(init_from=str(tmp_path)), tmp_path / "none")


def test_a_resumed_run_does_not_read_it(recipe: Any, old: Path, tmp_path: Path) -> None:
    config = recipe(steps=2, init_from=str(old))
    train(config, tmp_path / "run")
    old.rename(tmp_path / "moved")
    assert begin(config, tmp_path / "run").step == 2


def test_a_damaged_checkpoint_to_start_from_is_no_matter_of_fallback(recipe: Any, old: Path, tmp_path: Path) -> None:
    shutil.copytree(old, tmp_path / "damaged")
    (find_checkpoint(tmp_path / "damaged") / "manifest.json").write_text("{")
    with pytest.raises(Refused, match="init_from, got .*manifest.json.*name another of its checkpoints") as refusal:
        train(recipe(init_from=str(tmp_path / "damaged")), tmp_path / "run", fallback=True)
    assert "--fallback" not in str(refusal.value)
