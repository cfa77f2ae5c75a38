"""The U-Net behind the call of a DiT: grids, conditions, what it costs, and what a folder gives back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmdit.errors import Refused
from mmdit.models import DiT, UNet, model_cost, read_network

GRID = (3, 5, 6)  # 5 and 3 places do not halve
OPTIONS: dict[str, Any] = {
    "sample_size": GRID, "patch_size": (1, 1, 1), "in_channels": 4, "hidden_size": 8, "depth": 1, "num_heads": 2,
    "num_classes": 3, "text_dim": 6,
}  # fmt: skip


def make(**options: Any) -> UNet:
    """A network of which every weight is random."""
    network = UNet(**{**OPTIONS, **options})
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=random))
    return network.eval()


@pytest.fixture(scope="module")
def network() -> UNet:
    return make()


def inputs(batch: int = 2, grid: tuple[int, int, int] = GRID) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "latents": torch.randn(batch, 4, *grid, generator=random),
        "timesteps": torch.rand(batch, generator=random) * 999,
        "labels": torch.arange(batch) % 4,
        "text": torch.randn(batch, 6, generator=random),
    }


@torch.no_grad()
def test_any_grid_comes_back_and_clips_do_not_see_each_other(network: UNet) -> None:
    for grid in (GRID, (1, 4, 4), (2, 1, 3)):
        given = inputs(2, grid)
        both = network(**given)
        assert both.shape == (2, 4, *grid) and both.isfinite().all()
        alone = network(**{name: value[1:] for name, value in given.items()})
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)
    assert make(out_channels=8)(**inputs(1)).shape == (1, 8, *GRID)
    assert make(patch_size=(1, 1, 3))(**inputs(1)).shape == (1, 4, *GRID)
    assert not UNet(**OPTIONS)(**inputs(1)).any()  # a new one starts as zero


@torch.no_grad()
def test_training_draws_nothing_and_half_precision_works() -> None:
    trained, given = make().train(), inputs(1)
    out = trained(**given)
    assert torch.equal(trained(**given), out)
    half = make().to(torch.bfloat16)(**{**given, "latents": given["latents"].bfloat16()})
    assert half.dtype == torch.bfloat16 and (half - out).norm() < 0.1 * out.norm()


@torch.no_grad()
def test_patches_are_stacked_as_channels_and_laid_back() -> None:
    patched = make(patch_size=(2, 2, 3))
    patched.unet.forward = lambda x, *_, **__: (x,)  # type: ignore[method-assign]  # what enters the U-Net leaves it
    given = inputs(1, (2, 4, 6))
    assert torch.equal(patched(**given), given["latents"])


def test_frames_see_each_other_and_every_input_is_read(network: UNet) -> None:
    given = inputs(1)
    latents = given["latents"].clone().requires_grad_()
    out = network(**{**given, "latents": latents})
    (grad,) = torch.autograd.grad(out[:, :, 0].square().sum(), latents)
    assert grad[:, :, 2].abs().max() > 0  # the last frame acts upon the first
    with torch.no_grad():
        changes = {"timesteps": given["timesteps"] + 100, "labels": given["labels"] + 1, "text": -given["text"]}
        for name, value in changes.items():
            assert not torch.allclose(network(**{**given, name: value}), out, atol=1e-3), name
    network(**given).square().mean().backward()
    assert network.y_embedder is not None
    rows = network.y_embedder.embedding_table.weight.grad
    assert rows is not None and rows[0].any() and not rows[3].any()
    unused = {name for name, weight in network.named_parameters() if weight.grad is None}
    network.zero_grad()
    assert unused == set()


@torch.no_grad()
def test_the_null_label_is_one_more_and_a_network_without_conditions_takes_none(network: UNet) -> None:
    given = inputs(1)
    null = network(**{**given, "labels": torch.tensor([3])})
    assert not torch.allclose(null, network(**given), atol=1e-3)
    given.pop("labels"), given.pop("text")
    assert make(num_classes=0, text_dim=0)(**given).isfinite().all()


def test_what_it_cannot_do_is_refused(network: UNet) -> None:
    given = inputs(2)
    for changes, message in (
        ({"timesteps": torch.zeros(2, 3)}, "one timestep a clip"),
        ({"latents": torch.zeros(2, 5, *GRID)}, "not latents of this network"),
        ({"labels": None}, "input for labels, but labels are missing"),
    ):
        with pytest.raises(Refused, match=message):
            network(**{**given, **changes})
    with pytest.raises(Refused, match="does not divide into patches"):
        make(patch_size=(1, 2, 2))(**given)
    with pytest.raises(Refused, match="does not divide into heads"):
        make(num_heads=3)
    with pytest.raises(Refused, match="depth is too small"):
        make(depth=0)


@torch.no_grad()
def test_a_folder_gives_the_same_network_back(network: UNet, tmp_path: Path) -> None:
    network.save_pretrained(tmp_path / "unet")
    assert json.loads((tmp_path / "unet" / "config.json").read_text())["_class_name"] == "UNet"
    back = read_network(tmp_path / "unet").eval()
    assert isinstance(back, UNet) and torch.equal(back(**inputs()), network(**inputs()))
    assert model_cost(back.config) == model_cost(network.config)
    dit = DiT(sample_size=GRID, patch_size=(1, 1, 1), in_channels=4, hidden_size=8, depth=1, num_heads=2)
    dit.save_pretrained(tmp_path / "dit")
    assert isinstance(read_network(tmp_path / "dit"), DiT)


@torch.no_grad()
def test_the_cost_is_what_torch_counts(network: UNet) -> None:
    for grid in (GRID, (1, 4, 4)):
        # FlopCounterMode knows no fused attention of the CPU
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            network(**inputs(1, grid))
        cost = model_cost(network.config, grid)
        assert cost.macs == counter.get_total_flops() // 2
        assert cost.parameters == sum(weight.numel() for weight in network.parameters())
