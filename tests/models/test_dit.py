"""The network's promises: one frame is the image network, any grid, timesteps of frames."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmdit.errors import Refused
from mmdit.models import PRESETS, DiT, create_model
from mmdit.models.block import CONDITIONINGS, LAYOUTS

Make = Callable[..., DiT]
Inputs = Callable[..., dict[str, Any]]
MODERN = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "qk_norm": True}


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("text_tokens_by", ["cross-attention", "in-context"])
@pytest.mark.parametrize("modern", [False, True])
@torch.no_grad()
def test_a_factorized_network_at_one_frame_is_its_image_network_bit_for_bit(
    small: Make, inputs: Inputs, all_inputs: dict, conditioning: str, text_tokens_by: str, modern: bool
) -> None:
    options = {
        **all_inputs,
        "conditioning": conditioning,
        "text_tokens_by": text_tokens_by,
        **(MODERN if modern else {}),
    }
    video, image = small(layout="factorized", **options), small(layout="space", **options)
    weights = {name: value for name, value in video.state_dict().items() if "time_" not in name}
    for name, value in image.state_dict().items():  # shared adaLN has rows for the time attention
        weights[name] = weights[name][: len(value)]
    image.load_state_dict(weights, strict=True)
    values = inputs(video, grid=(1, 4, 6))
    assert torch.equal(video(**values), image(**values))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@torch.no_grad()
def test_a_factorized_network_starts_as_its_image_network_on_each_frame(
    small: Make, fresh: Make, inputs: Inputs, conditioning: str, positions: str
) -> None:
    options = {"conditioning": conditioning, "positions": positions}
    image, video = small(layout="space", **options), fresh(layout="factorized", **options).eval()
    start = video.state_dict()
    for name, value in image.state_dict().items():
        start[name][: len(value)] = value
    values = inputs(video)
    frames = [image(values["latents"][:, :, i : i + 1], values["timesteps"]) for i in range(3)]
    torch.testing.assert_close(video(**values), torch.cat(frames, dim=2), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@torch.no_grad()
def test_time_is_seen_where_the_layout_has_it(
    small: Make, inputs: Inputs, layout: str, conditioning: str, positions: str
) -> None:
    model = small(layout=layout, positions=positions, conditioning=conditioning)
    values = inputs(model)
    before = model(**values)
    changed = values["latents"].clone()
    changed[:, :, 2] += 1.0
    change = (model(**{**values, "latents": changed}) - before).abs().amax(dim=(0, 1, 3, 4))
    assert change[2] > 1e-3
    assert (change[0] > 1e-5) == (layout != "space")
    swapped = model(**{**values, "latents": values["latents"].flip(2)}).flip(2)
    order_matters = (swapped - before).abs().max() > 1e-4
    assert order_matters == (layout != "space")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("positions", ["sincos", "rotary"])
@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 6, 4), (5, 2, 10), (4, 14, 6)])
@torch.no_grad()
def test_any_grid(small: Make, inputs: Inputs, layout: str, positions: str, grid: tuple[int, int, int]) -> None:
    model = small(layout=layout, positions=positions, out_channels=8)
    out = model(**inputs(model, grid=grid))
    assert out.shape == (2, 8, *grid)
    assert out.isfinite().all()


@pytest.mark.parametrize(
    ("patch", "grid", "nearest"),
    [((1, 2, 2), (3, 5, 7), (3, 4, 6)), ((2, 4, 4), (3, 7, 9), (2, 8, 8)), ((2, 2, 2), (1, 2, 2), (2, 2, 2))],
)
def test_an_impossible_grid_is_refused_with_the_nearest(small: Make, patch: tuple, grid: tuple, nearest: tuple) -> None:
    with pytest.raises(Refused) as refusal:
        small(patch_size=patch)(torch.zeros(1, 4, *grid), torch.zeros(1))
    assert f"got {grid} with patches {patch}" in str(refusal.value) and f"nearest {nearest}" in str(refusal.value)


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("patch_frames", [1, 2])
@torch.no_grad()
def test_timesteps_of_each_frame_all_equal_are_the_timestep_of_the_sample(
    small: Make, inputs: Inputs, all_inputs: dict, conditioning: str, layout: str, patch_frames: int
) -> None:
    model = small(patch_size=(patch_frames, 2, 2), layout=layout, conditioning=conditioning, **all_inputs)
    values = inputs(model, grid=(4, 4, 6))
    whole = model(**values)
    timesteps = values["timesteps"][:, None]
    for frames in {4, 4 // patch_frames}:  # of the latents, of the tokens
        out = model(**{**values, "timesteps": timesteps.expand(2, frames)})
        torch.testing.assert_close(out, whole, atol=1e-5 * float(whole.abs().max()), rtol=0)
    other = timesteps.repeat(1, 4)
    other[0, 3] = 500.0
    change = (model(**{**values, "timesteps": other}) - whole).abs().amax(dim=(1, 3, 4))
    assert change[0, 3] > 1e-3  # the frame that has another timestep
    assert change[1].max() < 1e-4  # the sample that has none
    if layout == "space":
        assert change[0, 1] < 1e-4  # a frame that shares no patch with it


def test_timesteps_that_fit_nothing_are_refused(small: Make) -> None:
    for shape in ((3,), (2, 2), (2, 1), (3, 3), (2, 3, 1)):
        with pytest.raises(Refused, match="timesteps do not fit"):
            small()(torch.zeros(2, 4, 3, 4, 6), torch.zeros(shape))


@torch.no_grad()
def test_timesteps_may_be_whole_numbers(small: Make, inputs: Inputs) -> None:
    model = small()
    values = inputs(model)
    assert torch.equal(model(**{**values, "timesteps": torch.tensor([3, 700])}), model(**values))


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(
    small: Make, inputs: Inputs, all_inputs: dict, tmp_path: Path, conditioning: str
) -> None:
    model = small(layout="factorized", conditioning=conditioning, interpolate=True, **all_inputs, **MODERN)
    model.save_pretrained(tmp_path)
    again = DiT.from_pretrained(tmp_path).eval()
    values = inputs(model, grid=(2, 6, 6))
    assert torch.equal(model(**values), again(**values))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_made(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name, sample_size=(1, 32, 32), in_channels=4)
    assert len(model.blocks) == PRESETS[name]["depth"]


def test_what_cannot_be_is_refused(small: Make) -> None:
    with pytest.raises(Refused, match="try DiT-XL/2"):
        create_model("DiT-XXL/2", sample_size=(1, 4, 4), in_channels=4)
    for name in ("layout", "conditioning", "text_tokens_by", "positions", "norm", "mlp", "attention_backend"):
        with pytest.raises(Refused, match=f"unknown {name}.*'spacetime'"):
            small(**{name: "spacetime"})
    with pytest.raises(Refused, match="does not divide into heads"):
        small(num_heads=5)
    with pytest.raises(Refused, match="depth is too small"):
        small(depth=0)
    for scalars in (("fps", "fps"), ("frames a second",)):
        with pytest.raises(Refused, match="bad names of scalars"):
            small(scalars=scalars)
    for shape in ((2, 4, 4, 6), (2, 3, 3, 4, 6)):
        with pytest.raises(Refused, match=r"not latents of this network.*\(batch, 4, frames, height, width\)"):
            small()(torch.zeros(shape), torch.zeros(2))
