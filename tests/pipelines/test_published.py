"""Published weights as pipelines: they sample as diffusers' DiTPipeline and as the originals' equations do."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from commands import exit_code
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
)
from safetensors import safe_open
from torch import Tensor

from mmdit import models
from mmdit.errors import Refused
from mmdit.pipelines import ClipPipeline, from_dit, from_latte
from mmdit.pipelines.app import Playground
from mmdit.pipelines.loading import load_pipeline
from mmdit.pipelines.output import read_note

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"


def golden(name: str) -> dict[str, Tensor]:
    with safe_open(GOLDEN / f"{name}.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.startswith("weights.")]  # noqa: SIM118
        return {key.removeprefix("weights."): file.get_tensor(key) for key in keys}


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE of 4 channels and 8 pixels a cell, with the factor that the class has by itself, as the published one."""
    folder = tmp_path_factory.mktemp("vae")
    tiny.make_codec().vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def image_dit(vae: Path) -> ClipPipeline:
    return quiet(from_dit(golden("dit_image_class"), vae, num_heads=4))


def quiet(pipeline: ClipPipeline) -> ClipPipeline:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


# --- diffusers' DiTPipeline ---


def dit_pipeline(scheduler: Any) -> DiTPipeline:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=4,
            patch_size=2, num_embeds_ada_norm=1000,
        )  # fmt: skip
    tiny.randomize(network, 3)
    first, second = (block.norm1.emb for block in network.transformer_blocks)
    second.load_state_dict(first.state_dict())
    pipeline = DiTPipeline(network.eval(), tiny.make_codec().vae, scheduler, id2label={0: "tench, Tinca", 1: "crane",
                                                                                      2: "crane"})  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


BETAS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


@pytest.mark.parametrize(
    ("kind", "calls"),
    [(DDIMScheduler, [(), (4.0, 10), (1.0, 4)]), (DPMSolverMultistepScheduler, [(4.0, 10)])],
)
def test_a_saved_dit_pipeline_makes_the_images_that_it_makes_in_diffusers(
    kind: Any, calls: list[tuple[float, int]], tmp_path: Path
) -> None:
    """() is a call that says neither guidance nor steps."""
    theirs = dit_pipeline(kind(**BETAS | ({"clip_sample": False} if kind is DDIMScheduler else {})))
    theirs.save_pretrained(tmp_path)
    ours = quiet(from_dit(tmp_path))
    for call in calls:
        asked = dict(zip(("guidance_scale", "num_inference_steps"), call, strict=False))
        wanted = theirs([3, 207], generator=generators(1, 2), output_type="np", **asked).images
        made = ours(label=[3, 207], generator=generators(1, 2), output_type="np", **asked).frames
        assert made.shape == (2, 1, 32, 32, 3)
        assert wanted.std() > 0.05
        np.testing.assert_allclose(made[:, 0], wanted, atol=1e-5)


# --- the originals ---


def sample_as_the_original(
    predict: Callable[[Tensor, Tensor, int], Tensor], shape: tuple[int, ...], seed: int, steps: int, guided: int,
    scale: float, label: int, null: int,
) -> Tensor:  # fmt: skip
    """One sample (1, C, F, H, W) by the equations of 2006.11239 and 2102.09672, with betas of the timesteps kept.

    predict(x, t, label) gives the noise and, between the logarithms of the smallest and largest variance, the variance.
    """
    generator = torch.Generator().manual_seed(seed)
    times = np.linspace(0, 999, steps).round().astype(int)
    kept = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[times]
    before = np.append(1.0, kept[:-1])
    beta = 1 - kept / before
    small = beta * (1 - before) / (1 - kept)
    small[0] = small[1]
    x = torch.randn(shape, generator=generator)[None].double()
    for i in reversed(range(steps)):
        t = torch.tensor([times[i]])
        with torch.no_grad():
            out = predict(x.float(), t, label).double()
            null_out = predict(x.float(), t, null).double() if scale != 1 else out
        noise, between = out.chunk(2, dim=1)
        away = null_out[:, :guided] + scale * (out[:, :guided] - null_out[:, :guided])
        noise = torch.cat([away, noise[:, guided:]], dim=1)
        x_0 = (x - np.sqrt(1 - kept[i]) * noise) / np.sqrt(kept[i])
        mean = np.sqrt(before[i]) * beta[i] * x_0 + np.sqrt(1 - beta[i]) * (1 - before[i]) * x
        share = (between + 1) / 2
        deviation = torch.exp((share * np.log(beta[i]) + (1 - share) * np.log(small[i])) / 2)
        x = mean / (1 - kept[i])
        if i:
            x = x + deviation * torch.randn((1, *shape), generator=generator)
    return x


def test_the_original_dit_samples_as_its_equations_say(image_dit: ClipPipeline, vae: Path) -> None:
    network = models.from_dit(golden("dit_image_class"), sample_size=(1, 8, 8), num_heads=4)

    def predict(x: Tensor, t: Tensor, label: int) -> Tensor:
        return network(x, t, labels=torch.tensor([label]))

    asked: dict[str, Any] = {"label": "7", "num_inference_steps": 25}
    made = image_dit(**asked, generator=generators(5), output_type="latent").frames
    wanted = sample_as_the_original(predict, (4, 1, 8, 8), 5, 25, 3, 4.0, label=7, null=10)
    close(made, wanted)
    picture = image_dit(**asked, generator=generators(5), output_type="pt").frames
    with torch.no_grad():
        decoded = AutoencoderKL.from_pretrained(vae).decode(wanted[:, :, 0].float() / 0.18215).sample
    assert decoded.std() > 0.05
    torch.testing.assert_close(picture[:, :, 0], decoded.clamp(-1, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["latte_video_class", "latte_video_uncond"])
def test_latte_samples_as_its_equations_say(name: str, vae: Path) -> None:
    state, labelled = golden(name), name.endswith("class")
    frames = 5 if labelled else 4
    pipeline = quiet(from_latte(state, vae, num_heads=4))
    network = models.from_latte(state, sample_size=(frames, 8, 8), num_heads=4)

    def predict(x: Tensor, t: Tensor, label: int) -> Tensor:
        return network(x, t, labels=torch.tensor([label]) if labelled else None)

    asked = {"label": 7} if labelled else {}
    made = pipeline(**asked, generator=generators(5), num_inference_steps=25, output_type="latent").frames
    scale = 7.0 if labelled else 1.0
    close(made, sample_as_the_original(predict, (4, frames, 8, 8), 5, 25, 4, scale, label=7, null=10))
    assert (pipeline.defaults.steps, pipeline.config.clip["fps"]) == (250, 8)


def close(made: Tensor, wanted: Tensor) -> None:
    assert 0.1 < wanted.std() < 1e3
    torch.testing.assert_close(made, wanted.float(), atol=1e-4 * float(wanted.std()), rtol=0)


# --- folders, and the command line ---


def test_a_converted_file_is_a_pipeline_folder(
    vae: Path, tmp_path: Path, image_dit: ClipPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(golden("dit_image_class"), tmp_path / "in.pt")
    (tmp_path / "names.txt").write_text("\n".join(f"thing {number}" for number in range(10)))
    words = ("--vae", vae, "--labels", tmp_path / "names.txt", "--heads", 4)
    assert exit_code("convert", tmp_path / "in.pt", tmp_path / "out", *words) == 0
    assert "a pipeline" in capsys.readouterr().out
    assert exit_code("generate", tmp_path / "out", "--label", "thing 7", "--out", tmp_path / "made.png") == 0
    note = read_note(tmp_path / "made.png")
    assert (note["steps"], note["guidance"], note["frames"], note["label"]) == (250, 4.0, 1, "thing 7")
    pipeline = quiet(ClipPipeline.from_pretrained(tmp_path / "out"))
    ask: dict[str, Any] = {"num_inference_steps": 5, "output_type": "latent"}
    assert torch.equal(pipeline(label="thing 7", **ask).frames, image_dit(label=7, **ask).frames)
    assert Playground(load_pipeline(tmp_path / "out")).lengths() == [1]
    refused: list[tuple[tuple[Any, ...], str]] = [
        (("--label", 10), "no label of this number"),
        (("--prompt", "a cat"), "reads no prompts"),
        (("--label", 1, "--frames", 2), "this model makes images, got 2 frames"),
    ]
    for asked, line in refused:
        capsys.readouterr()
        assert exit_code("generate", tmp_path / "out", *asked, "--out", tmp_path / "none.png") == 2
        said = capsys.readouterr().err
        assert line in said
        assert said.count("\n") == 1


def test_a_folder_as_it_was_first_published(tmp_path: Path) -> None:
    """An older name of the network's class, weights as .bin, labels with several words each."""
    theirs = dit_pipeline(DDIMScheduler(**BETAS, clip_sample=False))
    theirs.save_pretrained(tmp_path, safe_serialization=False)
    edit(tmp_path / "transformer" / "config.json", _class_name="Transformer2DModel", cross_attention_dim=None)
    edit(tmp_path / "model_index.json", id2label={"0": "tench, Tinca tinca", "1": "crane", "2": "crane"})
    ours = quiet(from_dit(tmp_path))
    assert ours.config.label_names[:4] == ["tench", "crane (1)", "crane (2)", "3"]
    wanted = theirs([0], generator=generators(1), num_inference_steps=2, output_type="np").images
    made = ours(label="tench", generator=generators(1), num_inference_steps=2, output_type="np").frames
    np.testing.assert_allclose(made[:, 0], wanted, atol=1e-5)
    assert not torch.equal(*(from_dit(tmp_path, timestep_spacing=n)(  # the original's frequencies are others
        label=0, num_inference_steps=2, output_type="latent").frames for n in (127, 128)))  # fmt: skip


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- what cannot be ---


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"label": 10}, "there is no label of this number, got 10, expected 0 to 9"),
        ({"label": -1}, "there is no label of this number"),
        ({"label": "cat"}, "unknown label"),
        ({"prompt": "a cat"}, "this model reads no prompts"),
        ({"prompt": "a cat", "label": 1}, "this model reads no prompts"),
        ({"label": 1, "negative_prompt": "a cat"}, "this model reads no prompts"),
        ({"label": 1, "num_frames": 2}, "this model makes images, got 2 frames, expected 1"),
        ({"label": 1, "height": 72}, "the model cannot make this size, .* multiples of 16x16; the nearest is 64x64"),
    ],
)
def test_calls_that_the_image_dit_cannot_answer(image_dit: ClipPipeline, asked: dict[str, Any], line: str) -> None:
    with pytest.raises(Refused, match=line):
        image_dit(**asked)


def test_sizes_that_the_grid_allows(image_dit: ClipPipeline) -> None:
    made = image_dit(label=1, num_frames=1, height=48, width=80, num_inference_steps=2, output_type="pt").frames
    assert made.shape == (1, 3, 1, 48, 80)


def test_weights_and_vaes_that_do_not_go_together(vae: Path, tmp_path: Path) -> None:
    state = golden("dit_image_class")
    for name, change in (("channels", {"latent_channels": 8}), ("factor", {"scaling_factor": 0.13}),
                         ("shift", {"shift_factor": 0.1})):  # fmt: skip
        config = json.loads((vae / "config.json").read_text()) | change
        AutoencoderKL.from_config(config).save_pretrained(tmp_path / name)
    told: dict[str, Any] = {"num_heads": 4}
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: from_dit(state, tmp_path / "channels", **told), "disagree, got a VAE of 8 channels, expected 4"),
        (lambda: from_dit(state, tmp_path / "factor", **told), "scales its latents .*got a factor of 0.13,"),
        (lambda: from_dit(state, tmp_path / "shift", **told), "a shift of 0.1, expected a factor of 0.18215 without"),
        (lambda: from_dit(state, **told), "the file holds no VAE"),
        (lambda: from_dit(state, vae, labels=["a", "b"], **told), "got 2 names, expected 10"),
        (lambda: from_latte(state, vae, **told), "the keys are not those of Latte|come in pairs"),
        (lambda: from_dit(golden("latte_video_class"), vae, **told), "keys are not those of the original DiT, got 1"),
        (lambda: from_dit(tmp_path / "none.pt", vae), "no such file"),
        (lambda: from_dit(tmp_path, vae), "not a whole pipeline folder"),
        (lambda: from_latte(tmp_path, vae), "no diffusers folder"),
    ]
    for work, line in cases:
        with pytest.raises(Refused, match=line):
            work()


def test_folders_that_are_no_dit_pipeline(tmp_path: Path) -> None:
    theirs = dit_pipeline(DDIMScheduler(**BETAS))
    theirs.save_pretrained(tmp_path / "dit")
    files = {"scheduler": ("scheduler/scheduler_config.json", {"beta_schedule": "scaled_linear"}, "betas are not"),
             "class": ("model_index.json", {"scheduler": ["os", "path"]}, "no such scheduler is known, .* got path"),
             "kind": ("model_index.json", {"_class_name": "LattePipeline"}, "another kind, .* got LattePipeline"),
             "latte": ("transformer/config.json", {"_class_name": "LatteTransformer3DModel"},
                       "Latte reads prompts in its space blocks alone, .* expected Latte's own file")}  # fmt: skip
    for name, (file, change, line) in files.items():
        folder = Path(shutil.copytree(tmp_path / "dit", tmp_path / name))
        edit(folder / file, **change)
        with pytest.raises(Refused, match=line):
            from_dit(folder)
    with pytest.raises(Refused, match="Latte reads prompts"):
        from_latte(tmp_path / "latte", tmp_path / "latte" / "vae")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--labels", "names.txt"), "a network alone has no label names"),
        (("--vae", "VAE", "--labels", "none.txt"), "no such file of label names"),
        (("--vae", "VAE", "--labels", "names.txt"), "not one name a label, got 2 names, expected 10"),
        (("--vae", "VAE", "--inflate", 4), "only published weights make a pipeline"),
        (("--vae", "VAE", "--to", "diffusers"), "only published weights make a pipeline"),
        (("--vae", "VAE", "--from", "diffusers"), "no pipeline is made of such a file"),
        (("--vae", "nothing"), "no such codec"),
    ],
)
def test_words_of_convert_that_make_no_pipeline(
    words: tuple[Any, ...], line: str, vae: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(golden("dit_image_class"), "in.pt")
    Path("names.txt").write_text("a\nb\n")
    assert exit_code("convert", "in.pt", "out", "--heads", 4, *[vae if word == "VAE" else word for word in words]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert line in said
    assert not Path("out").exists()
