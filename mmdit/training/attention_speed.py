"""Which attention kernel is the quickest on this device, for each shape: forward and backward."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from mmdit.models.attention import LARGEST_FUSED_BATCH, attention

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

PADDED = (80, 96)  # head sizes that fused kernels may be quicker at: a multiple of 16; one that they have


@dataclass(frozen=True)
class Shape:
    """`batch` sequences of `tokens`, each with `heads` heads of `head_dim`."""

    name: str
    batch: int
    tokens: int
    heads: int
    head_dim: int

    @property
    def flops(self) -> int:
        """Of forward and backward: two products, and four."""
        return 6 * 2 * self.batch * self.heads * self.tokens**2 * self.head_dim


@dataclass
class Kernel:
    """Seconds of each run; `error` where it cannot run, or gives other numbers than the plain form."""

    name: str
    shape: Shape
    precision: str
    seconds: list[float] = field(default_factory=list)
    error: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def shapes(head_dim: int, heads: int, most: int) -> Iterator[Shape]:
    """Tokens of a frame, in few sequences; tokens of a place over time, in very many. `most`: elements of queries."""
    for tokens in (256, 1024, 4096):
        if (batch := most // (tokens * heads * head_dim)) > 0:
            yield Shape(f"space, {tokens} tokens", batch, tokens, heads, head_dim)
    for tokens in (4, 16, 64):
        if (batch := most // (tokens * heads * head_dim)) > 0:
            yield Shape(f"time, {tokens} tokens", min(batch, 100_000), tokens, heads, head_dim)


def measure_attention(shape: Shape, precision: str, device: str, runs: int) -> list[Kernel]:
    """All kernels, in turns; a first time, at which each is compared with the plain form in float32, is left out."""
    generator = torch.Generator(device).manual_seed(0)
    size = (shape.batch, shape.tokens, 3, shape.heads, shape.head_dim)
    qkv = torch.randn(size, generator=generator, device=device, dtype=DTYPES[precision]).requires_grad_()
    few = qkv[:4].detach()
    expected = attention(*few.float().unbind(2), backend="math")
    kernels = []
    for name, (call, inside) in _calls(shape.head_dim, device).items():
        kernel = Kernel(name, shape, precision)
        try:
            with inside():
                error = float((call(*few.unbind(2)).float() - expected).abs().max() / expected.abs().max())
            if not error < {"float32": 1e-3, "bfloat16": 3e-2}[precision]:
                kernel.error = f"off by {error:.1%} of the largest value"
        except Exception as error:  # a kernel that is not there for this shape: a line of the table
            kernel.error = (str(error).strip() or type(error).__name__).splitlines()[0]
        kernels.append((kernel, call, inside))
    for number in range(runs + 1):
        for kernel, call, inside in kernels:
            if not kernel.error:
                _time(kernel, qkv, call, inside, keep=number > 0)
    return [kernel for kernel, _, _ in kernels]


def _time(
    kernel: Kernel, qkv: Tensor, call: Callable[..., Tensor], inside: Callable[[], AbstractContextManager[Any]],
    *, keep: bool,
) -> None:  # fmt: skip
    qkv.grad = None
    gradient = torch.ones((), dtype=qkv.dtype, device=qkv.device).expand(*qkv.shape[:2], *qkv.shape[3:]).contiguous()
    on_gpu = qkv.device.type == "cuda"
    try:
        if on_gpu:
            torch.cuda.synchronize(qkv.device)
        began = time.perf_counter()
        with inside():
            call(*qkv.unbind(2)).backward(gradient)
        if on_gpu:
            torch.cuda.synchronize(qkv.device)
        seconds = time.perf_counter() - began
    except Exception as error:  # no memory, as the plain form of many tokens
        kernel.error = (str(error).strip() or type(error).__name__).splitlines()[0]
        return
    if keep:
        kernel.seconds.append(seconds)


def _calls(head_dim: int, device: str) -> dict[str, tuple[Callable[..., Tensor], Callable[[], Any]]]:
    """Kernels by name, each with what it is called inside of."""

    def by(backend: str) -> Callable[..., Tensor]:
        return lambda q, k, v: attention(q, k, v, backend=backend)

    def padded(to: int, *qkv: Tensor) -> Tensor:
        parts = (F.pad(x.transpose(1, 2), (0, to - head_dim)).split(LARGEST_FUSED_BATCH) for x in qkv)
        scale = head_dim**-0.5
        outs = [F.scaled_dot_product_attention(q, k, v, scale=scale) for q, k, v in zip(*parts, strict=True)]
        return torch.cat(outs)[..., :head_dim].transpose(1, 2)

    calls: dict[str, tuple[Callable[..., Tensor], Callable[[], Any]]] = {
        "auto": (by("auto"), nullcontext), "math": (by("math"), nullcontext), "sdpa": (by("sdpa"), nullcontext),
        "xformers": (by("xformers"), nullcontext),
    }  # fmt: skip
    for name, backend in {
        "flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION, "math": SDPBackend.MATH,
    }.items():  # fmt: skip
        if name in ("flash", "math") or device != "cpu":
            calls[f"sdpa {name}"] = by("sdpa"), partial(sdpa_kernel, backend)
    for size in PADDED:
        if head_dim < size:
            calls[f"sdpa, heads padded to {size}"] = partial(padded, size), nullcontext
    return calls
