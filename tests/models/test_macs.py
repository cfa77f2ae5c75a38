"""The cost of a configuration: the published figures, and what torch counts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmdit.errors import Refused
from mmdit.models import PRESETS, DiT, model_cost
from mmdit.models.block import CONDITIONINGS, LAYOUTS

# name: (million parameters, 10^9 multiply-accumulates) at 256 pixels; the paper gives the parameters for patch 2.
PUBLISHED = {
    "DiT-S/2": (32.96, 6.06), "DiT-S/4": (None, 1.41), "DiT-S/8": (None, 0.36),
    "DiT-B/2": (130.51, 23.01), "DiT-B/4": (None, 5.57), "DiT-B/8": (None, 1.42),
    "DiT-L/2": (458.10, 80.70), "DiT-L/4": (None, 19.70), "DiT-L/8": (None, 5.01),
    "DiT-XL/2": (675.13, 118.62), "DiT-XL/4": (None, 29.04), "DiT-XL/8": (None, 7.39),
}  # fmt: skip
PAPER: dict[str, Any] = {"in_channels": 4, "out_channels": 8, "num_classes": 1000}


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("DiT-")])
def test_presets_cost_what_is_published(name: str) -> None:
    preset = PRESETS[name]
    cost = model_cost({**PAPER, **preset, "sample_size": (1, 32, 32)})
    millions, billions = PUBLISHED[name]
    assert round(cost.macs / 1e9, 2) == billions
    if millions is not None:  # the paper counts its fixed position table
        assert round((cost.parameters + 256 * preset["hidden_size"]) / 1e6, 2) == millions


def test_larger_images_and_clips_cost_what_is_published() -> None:
    large = model_cost({**PAPER, **PRESETS["DiT-XL/2"], "sample_size": (1, 64, 64)})
    assert round(large.macs / 1e9, 1) == 524.5
    assert round((large.parameters + 1024 * 1152) / 1e6, 2) == 676.01
    options = {"sample_size": (16, 32, 32), "layout": "alternating", "num_classes": 0}
    latte = model_cost({**PAPER, **PRESETS["DiT-XL/2"], **options})
    assert round(latte.parameters / 1e6, 1) == 673.7
    # Latte repeats the condition for each frame before space blocks, for each place before time blocks; we do not.
    repeats = 14 * 6 * 1152**2 * (16 + 256 - 2)
    assert round((latte.macs + repeats) / 1e9) == 1893


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("text_tokens_by", ["cross-attention", "in-context", None])
@torch.no_grad()
def test_the_cost_is_what_torch_counts(
    fresh: Callable[..., DiT],
    inputs: Callable[..., dict],
    all_inputs: dict,
    layout: str,
    conditioning: str,
    text_tokens_by: str | None,
) -> None:
    modern = (layout in ("factorized", "joint")) == (text_tokens_by == "in-context")  # half of all
    options: dict[str, Any] = {"norm": "rms", "mlp": "swiglu", "qk_norm": True} if modern else {}
    if text_tokens_by is None:
        all_inputs["text_token_dim"] = 0
    else:
        options["text_tokens_by"] = text_tokens_by
    # The fused form is not counted as what it computes for every shape.
    options["attention_backend"] = "math"
    model = fresh(layout=layout, conditioning=conditioning, depth=3, **all_inputs, **options)
    for grid in ((3, 4, 6), (1, 6, 4)):
        for per_frame in (False, True):
            values = inputs(model, grid=grid)
            values["timesteps"] = values["timesteps"][:, None].expand(2, grid[0]) if per_frame else values["timesteps"]
            with FlopCounterMode(display=False) as counted:
                model(**values)
            tokens = 5 if text_tokens_by else 0
            cost = model_cost(model.config, grid, text_tokens=tokens, timestep_per_frame=per_frame)
            assert cost.macs * 2 * 2 == counted.get_total_flops()  # two samples, two operations each
            assert cost.parameters == sum(weight.numel() for weight in model.parameters())


def test_what_has_no_cost_is_refused() -> None:
    config = {**PAPER, **PRESETS["tiny"], "sample_size": (1, 32, 32)}
    with pytest.raises(Refused, match="nearest"):
        model_cost(config, (1, 31, 32))
    with pytest.raises(Refused, match="text tokens do not fit"):
        model_cost(config, text_tokens=5)
    with pytest.raises(Refused, match="text tokens do not fit"):
        model_cost({**config, "text_token_dim": 6})
