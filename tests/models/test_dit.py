"""The network's promises: one frame is the image network, any grid, every option trains."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit.errors import Refused
from mmdit.models import PRESETS, DiT, create_model
from mmdit.models.block import LAYOUTS

SMALL: dict[str, Any] = {
    "sample_size": (3, 4, 6),
    "patch_size": (1, 2, 2),
    "in_channels": 4,
    "hidden_size": 32,
    "depth": 2,
    "num_heads": 2,
}


def small(**options: Any) -> DiT:
    """A small network whose every weight is random, so that nothing hides behind the zero start."""
    model = DiT(**{**SMALL, **options})
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=random))
    return model.eval()


def inputs(model: DiT, batch: int = 2, grid: tuple[int, int, int] = (3, 4, 6)) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    values = {
        "latents": torch.randn(batch, 4, *grid, generator=random),
        "timesteps": torch.tensor([3.0, 700.0, 999.0])[:batch],
    }
    if model.config.num_classes:
        values["labels"] = torch.tensor([0, model.config.num_classes, 1])[:batch]
    if model.config.text_dim:
        values["text"] = torch.randn(batch, model.config.text_dim, generator=random)
    return values


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@torch.no_grad()
def test_a_factorized_network_at_one_frame_is_its_image_network_bit_for_bit(positions: str) -> None:
    video = small(layout="factorized", positions=positions, num_classes=3)
    image = small(layout="space", positions=positions, num_classes=3)
    image.load_state_dict(
        {name: value for name, value in video.state_dict().items() if "time_" not in name}, strict=True
    )
    values = inputs(video, grid=(1, 4, 6))
    assert torch.equal(video(**values), image(**values))


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@torch.no_grad()
def test_a_factorized_network_starts_as_its_image_network_on_each_frame(positions: str) -> None:
    image = small(layout="space", positions=positions)
    video = DiT(**SMALL, layout="factorized", positions=positions).eval()
    video.load_state_dict(image.state_dict(), strict=False)
    values = inputs(video)
    frames = [image(values["latents"][:, :, i : i + 1], values["timesteps"]) for i in range(3)]
    torch.testing.assert_close(video(**values), torch.cat(frames, dim=2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@torch.no_grad()
def test_time_is_seen_where_the_layout_has_it(layout: str, positions: str) -> None:
    model = small(layout=layout, positions=positions)
    values = inputs(model)
    before = model(**values)
    values["latents"][:, :, 2] += 1.0
    changed = (model(**values) - before).abs().amax(dim=(0, 1, 3, 4))
    assert changed[2] > 1e-3
    assert (changed[0] > 1e-4) == (layout != "space")
    swapped = small(layout=layout, positions=positions)(**{**values, "latents": values["latents"].flip(2)}).flip(2)
    order_matters = (swapped - model(**values)).abs().max() > 1e-3
    assert order_matters == (layout != "space")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 6, 4), (5, 2, 10), (4, 4, 6)])
@torch.no_grad()
def test_any_grid(layout: str, grid: tuple[int, int, int]) -> None:
    model = small(layout=layout)
    out = model(**inputs(model, grid=grid))
    assert out.shape == (2, 4, *grid)
    assert out.isfinite().all()


@torch.no_grad()
def test_timesteps_of_each_frame_all_equal_are_the_timestep_of_the_sample() -> None:
    model = small(layout="factorized", num_classes=3, text_dim=8)
    values = inputs(model)
    whole = model(**values)
    values["timesteps"] = values["timesteps"][:, None].expand(2, 3)
    torch.testing.assert_close(model(**values), whole, atol=1e-5, rtol=1e-5)
    values["timesteps"] = torch.tensor([[3.0, 3.0, 500.0], [700.0, 700.0, 700.0]])
    changed = (model(**values) - whole).abs().amax(dim=(1, 2, 3, 4))
    assert changed[0] > 1e-3 > changed[1]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("modern", [False, True])
def test_a_few_steps_reach_every_weight_and_lower_the_loss(layout: str, modern: bool) -> None:
    options = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "qk_norm": True} if modern else {}
    torch.manual_seed(0)
    model = DiT(**SMALL, layout=layout, num_classes=3, text_dim=8, **options)
    values, target = inputs(model), torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, reached = [], set()
    for _ in range(12):
        loss = ((model(**values) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        reached |= {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert losses[-1] < 0.9 * losses[0]
    assert reached == {name for name, _ in model.named_parameters()}


def test_it_starts_as_zero_and_repeats() -> None:
    torch.manual_seed(0)
    model = DiT(**SMALL, layout="factorized")
    assert not model(**inputs(model)).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_other_precisions(dtype: torch.dtype) -> None:
    model = small(layout="factorized", positions="rotary", qk_norm=True)
    values = inputs(model)
    expected = model(**values)
    out = model.to(dtype)(values["latents"].to(dtype), values["timesteps"])
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float64 else 0.1 * expected.abs().max().item()
    torch.testing.assert_close(out.float(), expected, atol=tolerance, rtol=0)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    model = small(layout="factorized", positions="rotary", num_classes=3, text_dim=8)
    model.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path).eval()
    assert torch.equal(model(**inputs(model)), again(**inputs(model)))


@pytest.mark.parametrize(
    ("name", "millions"),
    [("DiT-S/2", 32.96), ("DiT-B/2", 130.51), ("DiT-L/2", 458.10), ("DiT-XL/2", 675.13)],
)
def test_presets_have_the_papers_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = create_model(name, sample_size=(1, 32, 32), in_channels=4, out_channels=8, num_classes=1000)
    tables = 32 * 32 // 4 * model.config.hidden_size  # the paper counts its fixed position table
    assert sum(weight.numel() for weight in model.parameters()) + tables == pytest.approx(millions * 1e6, abs=0.5e4)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_made(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, sample_size=(1, 32, 32), in_channels=4)
    assert len(model.blocks) == PRESETS[name]["depth"]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(Refused, match="try DiT-XL/2"):
        create_model("DiT-XXL/2", sample_size=(1, 4, 4), in_channels=4)
    with pytest.raises(Refused, match="nearest \\(3, 4, 6\\)"):
        model = small()
        model(torch.zeros(1, 4, 3, 5, 7), torch.zeros(1))
    with pytest.raises(Refused, match="unknown layout"):
        DiT(**SMALL, layout="spacetime")
    with pytest.raises(Refused, match="does not divide into heads"):
        DiT(**{**SMALL, "num_heads": 5})
    with pytest.raises(ValueError, match="labels are given"):
        model(torch.zeros(1, 4, 3, 4, 6), torch.zeros(1), labels=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="text is missing"):
        small(text_dim=8)(torch.zeros(1, 4, 3, 4, 6), torch.zeros(1))
