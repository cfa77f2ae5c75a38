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

log = logging.getLogger(__name__)

BACKENDS = ("auto", "math", "sdpa", "xformers")

# Fused kernels put the batch on a grid axis of the GPU that ends here.
LARGEST_FUSED_BATCH = 65_535

# On a CPU the fused backward is several times slower than plain softmax for short sequences, and the plain form holds
# all N x N weights, so it serves up to this many tokens only.
LONGEST_PLAIN_SEQUENCE = 256


def attention(q: Tensor, k: Tensor, v: Tensor, *, backend: str = "auto") -> Tensor:
    """softmax(q k^T / sqrt(D)) v.

    Args:
        q, k, v: (B..., N, H, D) with equal leading axes; k and v may have another number of tokens than q.
        backend: one of BACKENDS; "auto" chooses by device and number of tokens.

    Returns:
        (B..., N, H, D)

    Raises:
        Refused: the backend is unknown, or cannot run here.
    """
    if backend == "auto":
        backend = choose_backend(q.device.type, max(q.shape[-3], k.shape[-3]))
    if backend == "math":
        return _math(q, k, v)
    fused = fused_backend(backend, q.device.type)
    lead = q.shape[:-3]
    q, k, v = (x.reshape(-1, *x.shape[-3:]) for x in (q, k, v))
    chunks = zip(*(x.split(LARGEST_FUSED_BATCH) for x in (q, k, v)), strict=True)
    out = torch.cat([fused(*chunk) for chunk in chunks]) if len(q) > LARGEST_FUSED_BATCH else fused(q, k, v)
    return out.reshape(*lead, *out.shape[-3:])


@functools.cache
def choose_backend(device: str, tokens: int) -> str:
    """The backend that "auto" stands for; said once in the log for each device and number of tokens."""
    if device == "cpu":
        name = "math" if tokens <= LONGEST_PLAIN_SEQUENCE else "sdpa"
    else:
        name = "xformers" if device == "cuda" and _xformers() is not None else "sdpa"
    log.info("attention over %d tokens on %s: %s", tokens, device, name)
    return name


@functools.cache
def fused_backend(name: str, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
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


def _math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(-3, -2) for x in (q, k, v))  # (B..., H, N, D)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # (B..., H, N, N)
    return (weights.softmax(dim=-1).to(v.dtype) @ v).transpose(-3, -2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, N, D)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)


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
