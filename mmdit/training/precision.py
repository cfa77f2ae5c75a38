"""The precision that a recipe's "auto" stands for: what this device computes products in the quickest."""

import functools
import time

import torch

# Rows, inputs, outputs of products: enough to choose a precision by, and large ones, on a CPU and on a GPU.
SMALL, LARGE, LARGE_ON_GPU = (512, 512, 2048), (2048, 2048, 2048), (8192, 8192, 8192)
ROUNDS = 3


def quick_precision() -> str:
    """What this machine's GPU, or without one its CPU, computes products in the quickest: float32 or bfloat16."""
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _cpu_is_quick_at_bfloat16() else "float32"


@functools.cache
def _cpu_is_quick_at_bfloat16() -> bool:
    """Measured: of two processors with AVX-512's bfloat16 products, one took 0.4 times and one 1.7 times as long."""
    rates = product_rates(torch.float32, torch.bfloat16, shape=SMALL)
    return rates[1] > rates[0]


def product_rates(*dtypes: torch.dtype, shape: tuple[int, int, int] | None = None, device: str = "cpu") -> list[float]:
    """Operations a second of a device on a product of these rows, inputs and outputs (None: a large one), in each
    precision: the best of a few taken in turns; a multiply-accumulate counts as two."""
    rows, inputs, outputs = shape or (LARGE if device == "cpu" else LARGE_ON_GPU)
    random = torch.Generator(device).manual_seed(0)  # a GPU is quicker at products of equal numbers
    pairs = [
        [torch.randn(n, inputs, generator=random, device=device).to(dtype) for n in (rows, outputs)] for dtype in dtypes
    ]
    seconds = [float("inf")] * len(pairs)
    for number in range(ROUNDS + 1):
        for index, (x, weight) in enumerate(pairs):
            began = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            if device != "cpu":
                torch.accelerator.synchronize(device)
            if number:  # the first chooses kernels
                seconds[index] = min(seconds[index], time.perf_counter() - began)
    return [2 * rows * inputs * outputs / best for best in seconds]
