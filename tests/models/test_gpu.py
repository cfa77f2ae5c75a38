"""On a CUDA device: the backends agree, and half precision and compiled agree with float32."""

from typing import Any

import pytest
import torch

from mmdit.models import DiT
from mmdit.models.attention import _xformers, attention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# (batch, token, head, dim): space and time attention, and a batch beyond what one kernel launch takes.
SHAPES = [(8, 256, 16, 72), (2048, 16, 16, 64), (70_000, 4, 2, 32)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["sdpa", "xformers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backends_agree_with_the_plain_formula(shape: tuple[int, ...], backend: str, dtype: torch.dtype) -> None:
    if backend == "xformers" and _xformers() is None:
        pytest.skip("xformers is not installed")
    random = torch.Generator("cuda").manual_seed(0)
    q, k, v = torch.randn(3, *shape, generator=random, device="cuda").to(dtype)
    expected = attention(q.double(), k.double(), v.double(), backend="math")
    tolerance = 2e-3 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(attention(q, k, v, backend=backend).double(), expected, atol=tolerance, rtol=tolerance)


@pytest.fixture
def network() -> tuple[DiT, dict[str, Any]]:
    torch.manual_seed(0)
    model = DiT(
        sample_size=(4, 16, 16), patch_size=(1, 2, 2), in_channels=4, hidden_size=256, depth=4, num_heads=4,
        layout="factorized", num_classes=10, positions="rotary", qk_norm=True,
    )  # fmt: skip
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    inputs = {
        "latents": torch.randn(4, 4, 4, 16, 16),
        "timesteps": torch.tensor([1.0, 200.0, 500.0, 990.0]),
        "labels": torch.tensor([0, 3, 10, 9]),
    }
    return model.cuda().eval(), {name: value.cuda() for name, value in inputs.items()}


@torch.no_grad()
def test_bfloat16_agrees_with_float32(network: tuple[DiT, dict[str, Any]]) -> None:
    model, inputs = network
    expected = model(**inputs)
    with torch.autocast("cuda", torch.bfloat16):
        out = model(**inputs).float()
    assert (out - expected).abs().mean() < 0.02 * expected.abs().mean()


@torch.no_grad()
def test_compiled_agrees_with_plain(network: tuple[DiT, dict[str, Any]]) -> None:
    model, inputs = network
    expected = model(**inputs)
    out = torch.compile(model)(**inputs)
    assert (out - expected).abs().max() < 1e-2 * expected.abs().max()
