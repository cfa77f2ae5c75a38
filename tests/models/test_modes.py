"""Precisions, compilation and checkpointing change nothing but what they are for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from mmdit.errors import Refused
from mmdit.models import DiT
from mmdit.models.block import CONDITIONINGS, LAYOUTS

Make = Callable[..., DiT]
Inputs = Callable[..., dict[str, Any]]
MODERN = {"positions": "rotary", "norm": "rms", "mlp": "swiglu", "qk_norm": True}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
@pytest.mark.parametrize(("modern", "backend"), [(False, "math"), (True, "sdpa")])
@torch.no_grad()
def test_other_precisions(
    small: Make, inputs: Inputs, all_inputs: dict, dtype: torch.dtype, conditioning: str, modern: bool, backend: str
) -> None:
    options = {"conditioning": conditioning, "attention_backend": backend, **(MODERN if modern else {})}
    model = small(layout="factorized", **all_inputs, **options)
    values = inputs(model)
    expected = model(**values)
    out = model.to(dtype)(**{**values, "latents": values["latents"].to(dtype)})
    assert out.dtype == dtype
    error, size = (out.double() - expected).square().mean().sqrt(), expected.square().mean().sqrt()
    assert error < {torch.float64: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype] * size


@pytest.mark.parametrize(
    ("layout", "conditioning", "options"),
    [
        ("factorized", "adaln-zero", {}),
        ("joint", "in-context", {**MODERN, "interpolate": True}),
    ],
)
def test_compiled_it_is_one_graph_and_other_frame_counts_take_one_more(
    small: Make, inputs: Inputs, layout: str, conditioning: str, options: dict
) -> None:
    torch._dynamo.reset()
    model = small(layout=layout, conditioning=conditioning, num_classes=3, text_token_dim=6, **options)
    graphs = CompileCounter()
    compiled = torch.compile(model, fullgraph=True, backend=graphs)
    for frames, count in ((4, 1), (3, 2), (7, 2)):
        values = inputs(model, grid=(frames, 4, 6))
        out, expected = compiled(**values), model(**values).detach()
        torch.testing.assert_close(out, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)
        out.sum().backward()
        assert graphs.frame_count == count


@pytest.mark.parametrize(("layout", "every"), list(zip(LAYOUTS, (1, 2, 3, 1), strict=True)))
@pytest.mark.parametrize("conditioning", CONDITIONINGS)
def test_checkpointing_changes_no_bit(
    small: Make, inputs: Inputs, all_inputs: dict, layout: str, conditioning: str, every: int
) -> None:
    model = small(layout=layout, conditioning=conditioning, depth=3, **all_inputs)
    values, runs = inputs(model), [0]
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))

    def step() -> tuple[torch.Tensor, list[torch.Tensor], int]:
        runs[0] = 0
        model.zero_grad()
        out = model(**values)
        out.square().sum().backward()
        return out, [weight.grad for weight in model.parameters()], runs[0]

    kept = step()
    model.enable_gradient_checkpointing(every)
    assert model.is_gradient_checkpointing
    again = step()
    assert torch.equal(kept[0], again[0])
    assert all(torch.equal(a, b) for a, b in zip(kept[1], again[1], strict=True))
    assert (kept[2], again[2]) == (3, 3 + len(range(0, 3, every)))  # every n-th block ran twice
    model.disable_gradient_checkpointing()
    assert step()[2] == 3 and not model.is_gradient_checkpointing


def test_checkpointing_of_no_block_is_refused(small: Make) -> None:
    with pytest.raises(Refused, match="1 or more"):
        small().enable_gradient_checkpointing(0)
