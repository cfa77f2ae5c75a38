"""AdamW whose state has 8 bits a value, of torchao. Source: arXiv 2110.02861.

Its moments are tensors made of plain ones: codes, a scale for each block of codes, and what the codes mean.
"""

import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mmdit.errors import Refused

PARTS = ("codes", "scale", "qmap")


def adamw_8bit(weights: Iterable[nn.Parameter], **settings: Any) -> Optimizer:
    """torchao's AdamW8bit; weights of fewer than 4096 values keep a float32 state. Refused where torchao is missing."""
    if importlib.util.find_spec("torchao") is None:
        raise Refused(
            "optimizer.adamw=8bit needs torchao, which is not installed",
            fix='pip install "mmdit-video[eightbit]", or set optimizer.adamw=fused',
        )
    from torchao.optim import AdamW8bit

    optimizer: Optimizer = AdamW8bit(weights, **settings)
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(settings["lr"], dtype=torch.float64)  # theirs is a float32 tensor
    return optimizer


def to_plain(state: dict[str, Any]) -> dict[str, Any]:
    """The state of one weight with each 8-bit moment KEY as plain tensors KEY.codes, KEY.scale and KEY.qmap."""
    plain: dict[str, Any] = {}
    for key, value in state.items():
        parts = {f"{key}.{part}": getattr(value, part) for part in PARTS} if hasattr(value, "qmap") else {key: value}
        plain |= parts
    return plain


def from_plain(plain: dict[str, Tensor]) -> dict[str, Any]:
    """The state that `to_plain` took apart."""
    state: dict[str, Any] = {key: value for key, value in plain.items() if "." not in key}
    for key in [name.removesuffix(".qmap") for name in plain if name.endswith(".qmap")]:
        from torchao.optim.subclass_8bit import OptimState8bit

        codes, scale, qmap = (plain[f"{key}.{part}"] for part in PARTS)
        state[key] = OptimState8bit(codes, scale, qmap, signed=bool(qmap.min() < 0))
    return state
