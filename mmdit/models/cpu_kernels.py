"""What a network computes most on a CPU, in fewer passes over memory: one function each, with the plain form beside it.

The plain form serves everywhere else: on other devices, under torch.compile (for which GELU has a form of its own), for
few tokens, for weights that are more than a tensor (quantised, sharded, without data), and inside `plain_kernels`. All
forms agree to rounding, in values and in gradients.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mmdit.errors import Refused

KERNELS = ("linear", "gelu", "attention")

SMALLEST = 65_536  # elements; for fewer, the calls take longer than what they save

# gelu(x) = x sigmoid(x (RISE + BEND x^2)) is the tanh form, with one exponential.
RISE = 2 * math.sqrt(2 / math.pi)
BEND = 0.044715 * RISE
CHUNK = 131_072  # elements whose passing results stay in a core's cache; less would not feed two threads

_plain: set[str] = set()


@contextmanager
def plain_kernels(*names: str) -> Iterator[None]:
    """Inside, these of KERNELS are computed in their plain form; without names all of them.

    Raises:
        Refused: an unknown name.
    """
    for name in names:
        if name not in KERNELS:
            raise Refused("no such kernel", got=repr(name), expected=f"one of {', '.join(KERNELS)}")
    added = set(names or KERNELS) - _plain
    _plain.update(added)
    try:
        yield
    finally:
        _plain.difference_update(added)


def is_quick(name: str, *tensors: Tensor) -> bool:
    """Whether the quick form of a kernel serves these tensors."""
    return (
        not torch.compiler.is_compiling()
        and name not in _plain
        and tensors[0].numel() >= SMALLEST
        and all(type(x) in (Tensor, nn.Parameter) and x.device.type == "cpu" for x in tensors)
        and all(x.dtype in (torch.float32, torch.bfloat16) for x in tensors)
    )


class Linear(nn.Linear):
    """`nn.Linear`, computed by `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b; x (..., in), weight (out, in), bias (out,).

    Quick where the CPU has AVX-512, by oneDNN: in float32 its products are up to a tenth quicker than MKL's on AMD
    cores; in bfloat16 the bias is added along the way, where the plain form lays it out in the result first.
    """
    if not is_quick("linear", x, weight, bias) or not _has_onednn():
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu"):
        x, weight, bias = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (x, weight, bias))
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad or bias.requires_grad):
        out: Tensor = _Linear.apply(x, weight, bias)
        return out
    return _product(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _product(grad, weight.t()) if for_x else None,
            rows.t() @ x.flatten(0, -2) if for_weight else None,  # as quick by MKL
            rows.sum(0) if for_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form; quick in training: the derivative is made along with the value, and kept in place of x.

    Compiled, it is written with one exponential: the tanh that the compiler has for CPUs takes longer.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu" and "gelu" not in _plain:
        return x * torch.sigmoid(x * (RISE + BEND * x * x))
    if x.requires_grad and torch.is_grad_enabled() and is_quick("gelu", x):
        out: Tensor = _Gelu.apply(x)
        return out
    return F.gelu(x, approximate="tanh")


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        value, slope = torch.empty_like(x), torch.empty_like(x)
        rise, fall, one = x.new_tensor((RISE, -2 * RISE, 1.0), dtype=torch.float32).unbind()
        is_whole = x.dtype == torch.float32  # else float32 is passing: a holds x, b the value, c the slope
        a, b, c, d = torch.empty(4, min(CHUNK, x.numel()))
        for part, out, out_slope in zip(*(t.view(-1).split(CHUNK) for t in (x, value, slope)), strict=True):
            n = len(part)
            u, y, s = (part, out, out_slope) if is_whole else (a[:n].copy_(part), b[:n], c[:n])
            v = torch.addcmul(rise, u, u, value=BEND, out=d[:n])  # RISE + BEND x^2
            torch.sigmoid(torch.mul(u, v, out=s), out=s)
            torch.mul(u, s, out=y)
            torch.add(fall, v, alpha=3, out=v).mul_(y)  # x s (RISE + 3 BEND x^2)
            s.lerp_(one, v)  # s + x s (1 - s) (RISE + 3 BEND x^2)
            if not is_whole:
                out.copy_(y)
                out_slope.copy_(s)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for training on few tokens; (B..., N, H, D) each, as `mmdit.models.attention` has it.

    Each input is laid out once for its products, (B x H, N, D), and so are the gradients, whose sums are written where
    they are wanted; left to autograd, each product lays out its own.
    """
    out: Tensor = _Attention.apply(q, k, v)
    return out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        ctx.shapes = q.shape, k.shape
        q, k, v = _heads_first(q * q.shape[-1] ** -0.5), _heads_first(k), _heads_first(v)
        weights = torch.bmm(q, k.transpose(1, 2))  # (BH, N, N)
        torch.softmax(weights, dim=-1, out=weights)
        ctx.save_for_backward(q, k, v, weights)
        return _heads_last(torch.bmm(weights, v), ctx.shapes[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, weights = ctx.saved_tensors
        for_queries, for_keys = ctx.shapes
        grad = _heads_first(grad)
        for_v = torch.bmm(weights.transpose(1, 2), grad)
        scores = torch.bmm(grad, v.transpose(1, 2))
        scores = torch.ops.aten._softmax_backward_data(scores, weights, -1, weights.dtype)
        for_q = torch.bmm(scores, k).mul_(q.shape[-1] ** -0.5)
        for_k = torch.bmm(scores.transpose(1, 2), q)
        return _heads_last(for_q, for_queries), _heads_last(for_k, for_keys), _heads_last(for_v, for_keys)


def _heads_first(x: Tensor) -> Tensor:
    """(B..., N, H, D) to (B x H, N, D)."""
    return x.transpose(-3, -2).reshape(-1, x.shape[-3], x.shape[-1])


def _heads_last(x: Tensor, shape: torch.Size) -> Tensor:
    """(B x H, N, D) to `shape` (B..., N, H, D), as a view."""
    *lead, tokens, heads, head_dim = shape
    return x.view(*lead, heads, tokens, head_dim).transpose(-3, -2)
