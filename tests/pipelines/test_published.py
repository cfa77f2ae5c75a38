"""Published weights as pipelines: they sample as diffusers' DiTPipeline and as the originals' equations do."""

import json
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
            patch_size=2, num_embeds_ada_norm=1000, norm_eps=1e-6,
        )  # fmt: skip
    tiny.randomize(network, 3)
    first, second = (block.norm1.emb for block in network.transformer_blocks)
    second.load_state_dict(first.state_dict())
    pipeline = DiTPipeline(network.eval(), tiny.make_codec().vae, scheduler, id2label={0: "tench, Tinca", 1: "crane",
                                                                                      2: "crane"})  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


BETAS: dict[str, Any] = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_a_saved_dit_pipeline_makes_the_images_that_it_makes_in_diffusers(kind: Any, tmp_path: Path) -> None:
    settings = BETAS | ({"clip_sample": False} if kind is DDIMScheduler else {})
    theirs = dit_pipeline(kind(**settings))
    theirs.save_pretrained(tmp_path)
    ours = quiet(from_dit(tmp_path))
    for steps, scale in ((50, 4.0), (4, 1.0)):
        wanted = theirs([3, 207], scale, generators(1, 2), steps, output_type="np").images
        asked = {} if steps == 50 else {"num_inference_steps": steps, "guidance_scale": scale}
        made = ours(label=[3, 207], generator=generators(1, 2), output_type="np", **asked).frames
        assert made.shape == (2, 1, 32, 32, 3)
        assert wanted.std() > 0.05
        np.testing.assert_allclose(made[:, 0], wanted, atol=1e-4)


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

    made = image_dit(label="7", generator=generators(5), output_type="latent").frames
    wanted = sample_as_the_original(predict, (4, 1, 8, 8), 5, 250, 3, 4.0, label=7, null=10)
    close(made, wanted)
    picture = image_dit(label=7, generator=generators(5), num_inference_steps=6, output_type="pt").frames
    latents = sample_as_the_original(predict, (4, 1, 8, 8), 5, 6, 3, 4.0, label=7, null=10).float()
    with torch.no_grad():
        decoded = AutoencoderKL.from_pretrained(vae).decode(latents[:, :, 0] / 0.18215).sample
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
