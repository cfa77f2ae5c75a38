"""Each way in which a condition enters is there in full: it trains, is seen, and means what its source says."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mmdit.errors import Refused
from mmdit.models import DiT
from mmdit.models.block import CONDITIONINGS, LAYOUTS

Make = Callable[..., DiT]
Inputs = Callable[..., dict[str, Any]]
TEXT_TOKENS_BY = ["cross-attention", "in-context"]
MODERN = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "qk_norm": True}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize(("text_tokens_by", "modern"), [("cross-attention", False), ("in-context", True)])
def test_a_few_steps_reach_every_weight_and_lower_the_loss(
    fresh: Make, inputs: Inputs, all_inputs: dict, layout: str, conditioning: str, text_tokens_by: str, modern: bool
) -> None:
    options = {"layout": layout, "conditioning": conditioning, "text_tokens_by": text_tokens_by}
    model = fresh(**options, **all_inputs, **(MODERN if modern else {}))
    values, target = inputs(model), torch.randn(2, 4, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses, reached = [], set()
    for _ in range(8):
        loss = ((model(**values) - target) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        reached |= {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert losses[-1] < 0.95 * losses[0]
    assert reached == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("text_tokens_by", TEXT_TOKENS_BY)
@torch.no_grad()
def test_every_input_is_seen(
    small: Make, inputs: Inputs, all_inputs: dict, conditioning: str, text_tokens_by: str
) -> None:
    model = small(conditioning=conditioning, text_tokens_by=text_tokens_by, **all_inputs)
    values = inputs(model)
    before = model(**values)
    others: dict[str, Any] = {
        "timesteps": values["timesteps"] + 50,
        "labels": torch.tensor([1, 1]),
        "text": values["text"].flip(1),
        "text_tokens": values["text_tokens"].flip(2),
        "text_mask": torch.tensor([[True] * 4 + [False]] * 2),
        "scalars": {**values["scalars"], "height": torch.tensor([40.0, 50.0])},
    }
    for name, other in others.items():
        change = (model(**{**values, name: other}) - before).abs().amax(dim=(1, 2, 3, 4))
        assert change.min() > 1e-4, name


@pytest.mark.parametrize(("layout", "backend"), [("factorized", "math"), ("alternating", "sdpa"), ("joint", "sdpa")])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize("text_tokens_by", TEXT_TOKENS_BY)
@torch.no_grad()
def test_padding_changes_nothing(
    small: Make, inputs: Inputs, layout: str, conditioning: str, text_tokens_by: str, backend: str
) -> None:
    options = {"layout": layout, "conditioning": conditioning, "text_tokens_by": text_tokens_by}
    model = small(**options, text_token_dim=6, attention_backend=backend)
    values = inputs(model)
    tokens, mask = values["text_tokens"], values["text_mask"]
    before = model(**values)
    longer = torch.cat([tokens, torch.full((2, 3, 6), 7.0)], dim=1)
    longer[1, 2:5] = torch.nan  # whatever stands in the padding
    padded = model(**{**values, "text_tokens": longer, "text_mask": torch.cat([mask, torch.zeros(2, 3) > 0], dim=1)})
    torch.testing.assert_close(padded, before, atol=1e-5, rtol=1e-5)
    alone = {name: value[1:] for name, value in values.items()}
    alone = model(**{**alone, "text_tokens": tokens[1:, :2], "text_mask": None})
    torch.testing.assert_close(alone, before[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text_tokens_by", TEXT_TOKENS_BY)
@pytest.mark.parametrize("backend", ["math", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_a_text_of_nothing_but_padding_is_the_same_at_any_length(
    small: Make, inputs: Inputs, text_tokens_by: str, backend: str, dtype: torch.dtype
) -> None:
    model = small(text_token_dim=6, text_tokens_by=text_tokens_by, attention_backend=backend).to(dtype)
    values = inputs(model)
    values = {**values, "latents": values["latents"].to(dtype), "text_mask": torch.zeros(2, 5) > 0}
    whole = model(**values)
    shorter = {**values, "text_tokens": values["text_tokens"][:, :2], "text_mask": torch.zeros(2, 2) > 0}
    assert whole.isfinite().all()
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2 * float(whole.abs().max())
    torch.testing.assert_close(model(**shorter), whole, atol=tolerance, rtol=0)


@torch.no_grad()
def test_adaln_is_adaln_zero_with_open_gates(small: Make, inputs: Inputs) -> None:
    plain, zero = small(conditioning="adaln", layout="factorized"), small(layout="factorized")
    weights = plain.state_dict()
    for name, value in zero.state_dict().items():
        if "modulation" not in name or name.startswith("final"):
            continue
        rows = weights[name].unflatten(0, (-1, 2, 32))  # (sub-layer, shift and scale, D, ...)
        gate = torch.full_like(rows[:, :1], float(name.endswith("bias")))
        weights[name] = torch.cat([rows, gate], dim=1).flatten(0, 2)
        assert weights[name].shape == value.shape
    zero.load_state_dict(weights)
    values = inputs(plain)
    torch.testing.assert_close(zero(**values), plain(**values), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shared_adaln_is_adaln_zero_whose_modulations_differ_in_a_constant(small: Make, inputs: Inputs) -> None:
    shared, zero = small(conditioning="shared-adaln", layout="factorized"), small(layout="factorized")
    weights = {name: value for name, value in shared.state_dict().items() if name in zero.state_dict()}
    weight, bias = (shared.get_parameter(f"shared_modulation.1.{name}") for name in ("weight", "bias"))
    for index, block in enumerate(shared.blocks):
        own = bias + block.get_parameter("modulation_table").flatten()
        for name, rows in (("adaLN_modulation", slice(0, 6 * 32)), ("time_modulation", slice(6 * 32, 9 * 32))):
            weights[f"blocks.{index}.{name}.1.weight"] = weight[rows]
            weights[f"blocks.{index}.{name}.1.bias"] = own[rows]
    zero.load_state_dict(weights, strict=False)
    seen: list[Tensor] = []
    for model in (shared, zero):  # the last layer is told the condition in another form
        model.final_layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        model(**inputs(model))
    torch.testing.assert_close(seen[0], seen[1], atol=1e-5, rtol=1e-5)
    condition = torch.randn(2, 1, 1, 32)
    shift, scale = (condition + row for row in shared.get_parameter("final_layer.modulation_table"))
    normed = torch.nn.functional.layer_norm(seen[0], (32,), eps=1e-6)
    expected = shared.final_layer.linear(normed * (1 + scale) + shift)
    torch.testing.assert_close(shared.final_layer(seen[0], condition), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_in_context_each_condition_is_a_token_among_the_others(small: Make, inputs: Inputs) -> None:
    model = small(conditioning="in-context", num_classes=3, depth=1)
    values = inputs(model, grid=(1, 4, 6))
    counts: list[tuple[int, ...]] = []
    model.blocks[0].register_forward_pre_hook(lambda _, given: counts.append(tuple(given[0].shape)))
    model.blocks[0].register_forward_pre_hook(lambda _, given: (given[0].flip(2), *given[1:]))  # order is no matter
    model.blocks[0].register_forward_hook(lambda _, given, out: out.flip(2))
    turned = model(**values)
    assert counts == [(2, 1, 2 + 6, 32)]
    for hooks in (model.blocks[0]._forward_pre_hooks, model.blocks[0]._forward_hooks):
        hooks.clear()
    torch.testing.assert_close(model(**values), turned, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["labels", "text", "text_tokens", "scalars"])
def test_an_input_too_many_or_too_few_is_refused(small: Make, inputs: Inputs, all_inputs: dict, name: str) -> None:
    model, without = small(**all_inputs), small()
    values = inputs(model)
    few = {key: value for key, value in values.items() if key not in (name, "text_mask")}
    with pytest.raises(Refused, match=f"has an input for {name}, but {name} (is|are) missing"):
        model(**few)
    with pytest.raises(Refused, match=f"has no input for {name}, but {name} (is|are) given"):
        without(values["latents"], values["timesteps"], **{name: values[name]})


def test_inputs_of_the_wrong_shape_are_refused(small: Make, inputs: Inputs, all_inputs: dict) -> None:
    model = small(**all_inputs)
    values = inputs(model)
    with pytest.raises(Refused, match=r"other scalars.*got \['fps'\], expected \['fps', 'height'\]"):
        model(**{**values, "scalars": {"fps": torch.zeros(2)}})
    with pytest.raises(Refused, match=r"bad text tokens.*\(2, 5, 7\)"):
        model(**{**values, "text_tokens": torch.zeros(2, 5, 7)})
    with pytest.raises(Refused, match=r"bad text tokens.*\(2, 0, 6\)"):
        model(**{**values, "text_tokens": torch.zeros(2, 0, 6)})
    with pytest.raises(Refused, match=r"text mask does not fit.*\(2, 4\).*\(2, 5\)"):
        model(**{**values, "text_mask": torch.ones(2, 4) > 0})
    with pytest.raises(Refused, match="text mask without text tokens"):
        small()(values["latents"], values["timesteps"], text_mask=values["text_mask"])


@torch.no_grad()
def test_the_condition_is_not_repeated_for_each_token(small: Make, inputs: Inputs) -> None:
    model = small(layout="factorized", num_classes=3)
    values, rows = inputs(model), []
    for block in model.blocks:
        for name in ("adaLN_modulation.1", "time_modulation.1"):
            block.get_submodule(name).register_forward_hook(
                lambda _, given, out: rows.append(out.numel() // out.shape[-1])
            )
    model(**values)
    assert rows == [2] * 4  # one a sample
    rows.clear()
    model(**{**values, "timesteps": torch.rand(2, 3)})
    assert rows == [2 * 3] * 4  # one a frame that has a timestep of its own
