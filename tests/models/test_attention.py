"""Every backend gives the numbers of the plain formula, at shapes where swapped axes would show."""

import pytest
import torch
from torch import Tensor

from mmdit.errors import Refused
from mmdit.models import attention as module
from mmdit.models.attention import attention, choose_backend

AVAILABLE = ["math", "sdpa"]


def reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, head by head, in float64."""
    out = torch.empty_like(q, dtype=torch.float64)
    for head in range(q.shape[-2]):
        a, b, c = (x[..., head, :].double() for x in (q, k, v))
        out[..., head, :] = torch.softmax(a @ b.transpose(-2, -1) / a.shape[-1] ** 0.5, -1) @ c
    return out


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("shape", [(2, 7, 3, 8), (2, 3, 5, 4, 8), (1, 1, 2, 16)])
def test_equals_the_formula(backend: str, shape: tuple[int, ...]) -> None:
    q, k, v = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(q, k, v, backend=backend).double(), reference(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_keys_may_be_of_another_number(backend: str) -> None:
    random = torch.Generator().manual_seed(0)
    q = torch.randn(2, 5, 3, 8, generator=random)
    k, v = torch.randn(2, 2, 9, 3, 8, generator=random)
    torch.testing.assert_close(attention(q, k, v, backend=backend).double(), reference(q, k, v), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_masked_keys_have_no_weight(backend: str) -> None:
    random = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 5, 3, 8, generator=random)  # tokens != heads
    k, v = torch.randn(2, 2, 4, 9, 3, 8, generator=random)
    mask = torch.arange(9) < torch.tensor([[[6]], [[0]]])  # (2, 1, 9): the second sample has no key at all
    out = attention(q, k, v, mask=mask, backend=backend)
    expected = reference(q[:1], k[:1, :, :6], v[:1, :, :6])
    torch.testing.assert_close(out[:1].double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out[1:], v[1:].mean(2, keepdim=True).expand(out[1:].shape), atol=1e-5, rtol=1e-5)


def test_a_batch_too_large_for_a_kernel_goes_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 10, 4, 2, 8)
    whole = attention(q, k, v, backend="sdpa")
    monkeypatch.setattr(module, "LARGEST_FUSED_BATCH", 3)
    sizes, fused = [], module._sdpa

    def counted(*inputs: Tensor) -> Tensor:
        sizes.append(len(inputs[0]))
        return fused(*inputs)

    monkeypatch.setattr(module, "_sdpa", counted)
    torch.testing.assert_close(attention(q, k, v, backend="sdpa"), whole)
    assert sizes == [3, 3, 3, 1]


def test_the_mask_goes_in_chunks_too(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 5, 2, 4, 2, 8)
    mask = torch.rand(5, 1, 4) > 0.3
    whole = attention(q, k, v, mask=mask, backend="sdpa")
    monkeypatch.setattr(module, "LARGEST_FUSED_BATCH", 3)
    torch.testing.assert_close(attention(q, k, v, mask=mask, backend="sdpa"), whole)


def test_the_automatic_choice_goes_by_precision_and_length_on_a_cpu(caplog: pytest.LogCaptureFixture) -> None:
    module._say.cache_clear()
    with caplog.at_level("INFO", logger=module.__name__):
        for _ in range(2):
            assert choose_backend("cpu", torch.bfloat16, 16) == "math"
            assert choose_backend("cpu", torch.bfloat16, 4096) == "sdpa"
            assert choose_backend("cpu", torch.float32, 16) == "sdpa"
    assert len(caplog.messages) == 3  # each choice is said once
    assert "attention on cpu in bfloat16: math" in caplog.messages


def test_a_backend_that_cannot_run_here_is_refused() -> None:
    q = torch.randn(1, 2, 1, 8)
    with pytest.raises(Refused, match="xformers cannot run here"):
        attention(q, q, q, backend="xformers")
    with pytest.raises(Refused, match="'?flash3'?"):
        attention(q, q, q, backend="flash3")
