"""The diffusion of the paper, in numbers made with the original network (tests/assets/golden)."""

import json
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from mmdit.diffusion import GaussianDiffusion, Guidance, guided, make_scheduler, sample, two_passes
from mmdit.models import DiT

GOLDEN = Path(__file__).parents[1] / "assets" / "golden" / "dit_image_class.safetensors"
PAPER = GaussianDiffusion()
# The trajectories end at values up to 786, where neighbouring float32 numbers are 6e-5 apart: the same steps in float64
# end 1.4e-4 to 2.9e-4 away from these values, and so do the original's own lines written out again in float32.
ULPS = 1e-6


@cache
def values() -> dict[str, Tensor]:
    with safe_open(GOLDEN, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@cache
def network() -> DiT:
    with safe_open(GOLDEN, "pt") as file:
        config = json.loads(file.metadata()["config"])
    weights = {key.removeprefix("weights."): v for key, v in values().items() if key.startswith("weights.")}
    weights["x_embedder.proj.weight"] = weights["x_embedder.proj.weight"].unsqueeze(2)
    del weights["pos_embed"]
    side, patch = config.pop("input_size"), config.pop("patch_size")
    size = {"sample_size": (1, side, side), "patch_size": (1, patch, patch)}
    model = DiT(**size, **config, out_channels=2 * config["in_channels"], layout="space")
    model.load_state_dict(weights)
    return model.eval()


def predict(x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    """The original's layout: images (batch, channel, height, width)."""
    with torch.no_grad():
        return network()(x_t[:, :, None], t, labels=values()["in.y"] if labels is None else labels)[:, :, 0]


def close(got: Tensor, name: str, atol: float, rtol: float = 0) -> None:
    torch.testing.assert_close(got, values()[name], atol=atol, rtol=rtol)


def test_the_training_terms_are_the_originals() -> None:
    v = values()
    close(PAPER.add_noise(v["in.x"], v["diff.noise"], v["diff.t"]), "diff.x_t", 1e-5)
    loss = PAPER.loss(predict, v["in.x"], v["diff.noise"], v["diff.t"])
    assert loss.vb is not None
    close(loss.mse, "diff.mse", 1e-5)
    close(loss.vb, "diff.vb", 1e-5)
    close(loss.per_sample, "diff.loss", 1e-5)


@pytest.fixture
def step_noise(monkeypatch: pytest.MonkeyPatch, steps: int) -> Iterator[None]:
    """The scheduler draws the original's noise, in its order."""
    drawn = iter(values()[f"ddpm{steps}.step_noise"])
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: next(drawn))
    yield
    assert len(list(drawn)) == 1  # the last step's noise counts nothing


@pytest.mark.usefixtures("step_noise")
@pytest.mark.parametrize("steps", [10, 25])
def test_ddpm_walks_the_originals_way(steps: int) -> None:
    scheduler = make_scheduler("ddpm", PAPER)
    generators = [torch.Generator()] * 3
    out = sample(predict, values()[f"ddpm{steps}.z"], scheduler, steps, generators=generators)
    assert scheduler.timesteps.flip(0).tolist() == values()[f"ddpm{steps}.timesteps"].tolist()
    close(out, f"ddpm{steps}.sample", 1e-4, ULPS)


@pytest.mark.parametrize("steps", [10, 25])
def test_ddim_walks_the_originals_way(steps: int) -> None:
    out = sample(predict, values()[f"ddpm{steps}.z"], make_scheduler("ddim", PAPER), steps)
    close(out, f"ddim{steps}.sample", 1e-4, ULPS)


def test_the_published_guidance_moves_three_channels() -> None:
    v = values()
    null = torch.full_like(v["in.y"], 10)
    both = partial(predict, labels=torch.cat([v["in.y"], null]))
    how = Guidance(4.0, channels=3)
    close(guided(both, predict, how)(v["in.x"], v["in.t"]), "out.cfg3_scale4", 1e-5)
    passes = two_passes(predict, partial(predict, labels=null))
    close(guided(passes, predict, how)(v["in.x"], v["in.t"]), "out.cfg3_scale4", 1e-5)
