"""Attention, behind one function: the same numbers from every backend.

Shapes: B batch (any number of leading axes), N tokens, H heads, D head size.
Everywhere in mmdit, queries, keys and values are (B..., N, H, D); each backend's own layout stays inside this file.
"""

import functools
import logging
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.errors import Refused
from mmdit.models import cpu_kernels

log = logging.getLogger(__name__)

BACKENDS = ("auto", "math", "sdpa", "xformers")

# Fused kernels put the batch on a grid axis of the GPU that ends here.
LARGEST_FUSED_BATCH = 65_535

# On a CPU the backward of the fused kernel is two to ten times slower than plain softmax in half precision, and quicker
# in full precision. The plain form holds all N x N weights, so it serves up to this many tokens only.
LONGEST_PLAIN = 1024
LONGEST_QUICK = 32  # tokens up to which the CPU kernel for few of them is the quickest in training


def attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q, k, v: (B..., N, H, D) with equal leading axes; k and v may have another number of tokens than q.
        mask: (B..., N) bool, which of the keys are there; axes of size 1 stand for all. A row without any key gets the
            mean over all of them. With a mask, "xformers" hands over to "sdpa": its own form wants padded memory.
        backend: one of BACKENDS; "auto" chooses by device, precision and number of tokens.

    Returns:
        (B..., N, H, D)

    Raises:
        Refused: the backend is unknown, or cannot run here.
    """
    if backend == "auto":
        if mask is None and _is_short(q, k, v):
            return cpu_kernels.attention(q, k, v)
        backend = choose_backend(q.device.type, q.dtype, max(q.shape[-3], k.shape[-3]))
    bias = None if mask is None else _bias(mask, q.dtype)  # (B..., 1, 1, N)
    if backend == "math":
        return _math(q, k, v, bias)
    fused = fused_backend(backend, q.device.type)
    if bias is not None:
        fused = _sdpa
        bias = bias.expand(*q.shape[:-3], *bias.shape[-3:])
    lead = q.shape[:-3]
    inputs = [x.reshape(-1, *x.shape[-3:]) for x in (q, k, v, bias) if x is not None]
    if len(inputs[0]) <= LARGEST_FUSED_BATCH:
        out = fused(*inputs)
    else:
        chunks = zip(*(x.split(LARGEST_FUSED_BATCH) for x in inputs), strict=True)
        out = torch.cat([fused(*chunk) for chunk in chunks])
    return out.reshape(*lead, *out.shape[-3:])


def choose_backend(device: str, dtype: torch.dtype, tokens: int) -> str:
    """The backend that "auto" stands for; each choice is said once in the log."""
    if device == "cpu":
        name = "math" if dtype.itemsize == 2 and tokens <= LONGEST_PLAIN else "sdpa"
    else:
        name = "xformers" if device == "cuda" and _xformers() is not None else "sdpa"
    if not torch.compiler.is_compiling():  # a log line would break the compiled graph
        _say(device, dtype, name)
    return name


def _is_short(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the CPU kernel for few tokens serves: in training alone, where most of it is saved."""
    if not (torch.is_grad_enabled() and q.requires_grad and cpu_kernels.is_quick("attention", q, k, v)):
        return False
    return max(q.shape[-3], k.shape[-3]) <= LONGEST_QUICK


@functools.cache
def _say(device: str, dtype: torch.dtype, name: str) -> None:
    log.info("attention on %s in %s: %s", device, str(dtype).removeprefix("torch."), name)


def fused_backend(name: str, device: str) -> Callable[..., Tensor]:
    """The function of a fused backend by name; Refused where it cannot run."""
    if name == "sdpa":
        return _sdpa
    if name != "xformers":
        raise Refused("unknown attention backend", got=name, expected=f"one of {', '.join(BACKENDS)}")
    if device != "cuda" or _xformers() is None:
        missing = "a CPU (xformers has no CPU kernel)" if device != "cuda" else "no xformers installed"
        raise Refused(
            "attention backend xformers cannot run here",
            got=missing,
            expected="a CUDA GPU and the xformers extra",
            fix="choose auto or sdpa",
        )
    return _xformers_attention


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Added to the scores: 0 where a key is there, else so low that its weight is exactly 0; (B..., 1, 1, N)."""
    lowest = torch.finfo(dtype).min / 2  # finite: a row of nothing but -inf would be NaN
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, lowest)[..., None, None, :]


def _math(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))  # (B..., H, N, D)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B..., H, N, N)
    weights = weights if bias is None else weights + bias
    return (weights.softmax(dim=-1).to(v.dtype) @ v).transpose(-3, -2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


def _xformers_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    ops = _xformers()
    assert ops is not None  # fused_backend has looked
    return ops(q, k, v)  # (B, N, H, D), as ours


@functools.cache
def _xformers() -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    try:
        from xformers.ops import memory_efficient_attention  # imported when chosen only: it warns on every import
    except ImportError:
        return None
    return memory_efficient_attention
