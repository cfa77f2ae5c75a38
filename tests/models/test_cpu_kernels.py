"""Kernels for CPUs give what their plain forms give, values and gradients, and serve only where they can."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.errors import Refused
from mmdit.models import cpu_kernels
from mmdit.models.attention import attention
from mmdit.models.cpu_kernels import KERNELS, gelu, is_quick, linear, plain_kernels

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the largest value


def with_gradients(work: Callable[..., Tensor], *inputs: Tensor) -> list[Tensor]:
    """The result of `work`, and the gradients of its inputs under a fixed one of the result."""
    inputs = tuple(x.clone().requires_grad_() for x in inputs)
    out = work(*inputs)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(out.dtype))
    return [out.detach(), *(x.grad for x in inputs if x.grad is not None)]


def assert_alike(quick: list[Tensor], plain: list[Tensor], tolerance: float) -> None:
    assert len(quick) == len(plain)
    for ours, theirs in zip(quick, plain, strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        assert (ours.double() - theirs.double()).abs().max() <= tolerance * theirs.double().abs().max()


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "SMALLEST", 0)


@pytest.fixture
def product() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 3, 40, 48), torch.randn(56, 48), torch.randn(56)


def test_linear_is_its_plain_form(product: tuple[Tensor, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    if not cpu_kernels._has_onednn():  # its function is the same elsewhere, only not oneDNN's
        monkeypatch.setattr(cpu_kernels, "_has_onednn", lambda: True)
        monkeypatch.setattr(cpu_kernels, "_product", F.linear)
    runs = record_runs(monkeypatch)
    quick = with_gradients(linear, *product)
    assert runs == [1, 1]  # forward, and backward for x
    with plain_kernels("linear"):
        plain = with_gradients(linear, *product)
    assert_alike(quick, plain, TOLERANCE[torch.float32])
    with torch.no_grad():
        assert_alike([linear(*product)], [F.linear(*product)], TOLERANCE[torch.float32])
    assert len(runs) == 3


@pytest.mark.parametrize("autocast", [True, False])
def test_linear_in_bfloat16_is_its_plain_form(
    product: tuple[Tensor, Tensor, Tensor], autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not cpu_kernels._has_onednn():
        monkeypatch.setattr(cpu_kernels, "_has_onednn", lambda: True)
        monkeypatch.setattr(cpu_kernels, "_product", F.linear)
    runs = record_runs(monkeypatch)
    inputs = product if autocast else tuple(value.bfloat16() for value in product)
    work = under_autocast(linear) if autocast else linear
    quick = with_gradients(work, *inputs)
    assert runs == [1, 1]
    with plain_kernels("linear"):
        plain = with_gradients(work, *inputs)
    assert quick[0].dtype == torch.bfloat16 and quick[1].dtype == inputs[0].dtype
    assert_alike(quick, plain, TOLERANCE[torch.bfloat16])


def under_autocast(work: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.autocast("cpu", torch.bfloat16)(work)


def record_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets an entry whenever oneDNN is asked for a product."""
    runs: list[int] = []
    product = cpu_kernels._product

    def recorded(*given: Tensor) -> Tensor:
        runs.append(1)
        return product(*given)

    monkeypatch.setattr(cpu_kernels, "_product", recorded)
    return runs


def test_linear_makes_only_the_gradients_that_are_wanted(product: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias = product
    weight.requires_grad_()
    linear(x, weight, bias).sum().backward()
    assert x.grad is None and bias.grad is None and weight.grad is not None


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_gelu_is_its_plain_form(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "CHUNK", 1000)  # with a rest
    x = torch.cat([torch.linspace(-12, 12, 4097), torch.tensor([-1e4, -60.0, 0.0, 60.0, 1e4])]).to(dtype)
    quick = with_gradients(gelu, x)
    with plain_kernels("gelu"):
        plain = with_gradients(gelu, x)
    for ours, theirs in zip(quick, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6 if dtype == torch.float32 else 8e-3, rtol=TOLERANCE[dtype])
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))  # without a gradient there is nothing to be quicker at


def test_gelu_as_it_is_compiled_is_its_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.cat([torch.linspace(-12, 12, 4097), torch.tensor([-1e4, -60.0, 0.0, 60.0, 1e4])])
    plain = with_gradients(lambda x: F.gelu(x, approximate="tanh"), x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    compiled = with_gradients(gelu, x)
    assert not torch.equal(compiled[0], plain[0])  # another form
    for ours, theirs in zip(compiled, plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)
    with plain_kernels("gelu"):
        assert torch.equal(gelu(x), plain[0])
    assert gelu(x.to("meta")).device.type == "meta"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("lead", "tokens", "keys"), [((2, 3), 5, 5), ((4,), 7, 9)])
def test_attention_over_few_tokens_is_its_plain_form(
    lead: tuple[int, ...], tokens: int, keys: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(*lead, n, 2, 8, dtype=dtype) for n in (tokens, keys, keys))
    quick = with_gradients(attention, q, k, v)
    assert "_Attention" in type(attention(q.requires_grad_(), k, v).grad_fn).__name__
    with plain_kernels("attention"):
        plain = with_gradients(lambda *given: attention(*given, backend="math"), q.detach(), k, v)
    assert_alike(quick, plain, TOLERANCE[dtype])


def test_attention_is_left_to_other_kernels_where_tokens_are_many_or_masked() -> None:
    def kernel(tokens: int, dtype: torch.dtype, **options: Tensor) -> str:
        q = torch.zeros(1, tokens, 1, 4, dtype=dtype, requires_grad=True)
        return type(attention(q, q, q, **options).grad_fn).__name__

    assert "_Attention" in kernel(32, torch.float32) and "_Attention" not in kernel(33, torch.float32)
    assert "_Attention" in kernel(32, torch.bfloat16) and "_Attention" not in kernel(33, torch.bfloat16)
    assert "_Attention" not in kernel(8, torch.float32, mask=torch.ones(1, 8, dtype=torch.bool))
    with torch.no_grad():
        assert kernel(8, torch.float32) == "NoneType"


def test_the_plain_form_serves_what_the_kernels_cannot() -> None:
    x = torch.zeros(4)
    assert is_quick("gelu", x, torch.nn.Parameter(x))
    with plain_kernels("gelu"):
        assert not is_quick("gelu", x) and is_quick("linear", x)
        with plain_kernels():
            assert not any(is_quick(name, x) for name in KERNELS)
        assert not is_quick("gelu", x) and is_quick("linear", x)
    assert not is_quick("gelu", x.double()) and not is_quick("gelu", x.to("meta"))
    with torch._subclasses.fake_tensor.FakeTensorMode():
        assert not is_quick("gelu", torch.zeros(4))


def test_few_elements_are_left_to_the_plain_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels, "SMALLEST", 5)
    assert is_quick("gelu", torch.zeros(5)) and not is_quick("gelu", torch.zeros(4))


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(Refused, match="no such kernel.*'glue'"), plain_kernels("glue"):
        pass
