"""What a network costs, computed from its configuration alone: parameters, and multiply-accumulates of a forward pass.

The "Gflops" of the DiT paper are multiply-accumulates. Counted are the matrix products, which are all but a per mille.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmdit.errors import Refused
from mmdit.models.block import CONDITIONINGS, LAYOUTS
from mmdit.models.checks import token_grid
from mmdit.models.dit import DiT
from mmdit.models.sublayers import mlp_width
from mmdit.models.unet import unet_cost


@dataclass(frozen=True)
class Cost:
    """`parameters`: trained ones. `macs`: multiply-accumulates of one sample's forward pass."""

    parameters: int
    macs: int


class _Count:
    """Adds up linears by how often each is applied."""

    def __init__(self) -> None:
        self.parameters = 0
        self.macs = 0

    def linear(self, inputs: int, outputs: int, times: int) -> None:
        self.parameters += (inputs + 1) * outputs
        self.macs += inputs * outputs * times

    def attention(self, queries: int, keys: int, width: int, times: int = 1) -> None:
        self.macs += 2 * queries * keys * width * times  # q k^T, and weights times values


def model_cost(
    config: Mapping[str, Any],
    latent_grid: tuple[int, int, int] | None = None,
    *,
    text_tokens: int = 0,
    timestep_per_frame: bool = False,
) -> Cost:
    """What the network costs that `DiT(**config)` makes, or `UNet(**config)` where the configuration has `widths`.

    Args:
        config: arguments of `DiT`, such as `{**PRESETS["DiT-XL/2"], "sample_size": ..., "in_channels": 4}`, or the
            `config` of a network.
        latent_grid: (frames, height, width) of what enters; None for the configuration's `sample_size`.
        text_tokens: how many enter, for a network that takes them.
        timestep_per_frame: whether each token frame has a timestep of its own.

    Raises:
        Refused: the patch does not divide the grid, or text tokens are missing or too many.
    """
    if "widths" in config:
        return Cost(*unet_cost(config, latent_grid))
    defaults = {name: value.default for name, value in inspect.signature(DiT.__init__).parameters.items()}
    c = {**defaults, **config}
    if bool(c["text_token_dim"]) != bool(text_tokens):
        raise Refused("text tokens do not fit", got=text_tokens, expected="some exactly for a network that takes them")
    f, h, w = token_grid(tuple(latent_grid or c["sample_size"]), tuple(c["patch_size"]))
    frames = f if timestep_per_frame else 1
    inputs = 1 + bool(c["num_classes"]) + bool(c["text_dim"]) + len(c["scalars"])  # one vector each
    in_context = inputs * (c["conditioning"] == "in-context")
    crossed = inputs * (c["conditioning"] == "cross-attention")
    if c["text_tokens_by"] == "in-context":
        in_context += text_tokens
    else:
        crossed += text_tokens
    count = _Count()
    _embedders(count, c, tokens=f * h * w, frames=frames, text_tokens=text_tokens)
    for index in range(c["depth"]):
        rows = LAYOUTS[c["layout"]]
        told = crossed * (frames if c["conditioning"] == "cross-attention" else 1)  # keys and values that are made
        _block(count, c, rows[index % len(rows)], f=f, s=h * w + in_context, frames=frames, crossed=crossed, told=told)
    _last(count, c, tokens=f * h * w, frames=frames)
    return Cost(count.parameters, count.macs)


def _embedders(count: _Count, c: dict[str, Any], *, tokens: int, frames: int, text_tokens: int) -> None:
    width = c["hidden_size"]
    count.linear(c["in_channels"] * _volume(c), width, tokens)
    for times in [frames] + [1] * len(c["scalars"]):
        count.linear(256, width, times)
        count.linear(width, width, times)
    if c["num_classes"]:
        count.parameters += (c["num_classes"] + 1) * width
    for dim, times in ((c["text_dim"], 1), (c["text_token_dim"], text_tokens)):
        if dim:
            count.linear(dim, width, times)
            count.linear(width, width, times)
    if c["conditioning"] == "shared-adaln":
        count.linear(width, _modulated_width(c, LAYOUTS[c["layout"]][0]), frames)


def _block(
    count: _Count, c: dict[str, Any], parts: tuple[str, ...], *, f: int, s: int, frames: int, crossed: int, told: int
) -> None:
    """A block on f frames of s tokens each; `crossed` tokens are attended to, `told` are made into keys and values."""
    width, tokens = c["hidden_size"], f * s
    head_scales = 2 * (width // c["num_heads"]) * c["qk_norm"]
    norm = width * (2 if c["norm"] == "layer" else 1)
    for index, part in enumerate(parts[:-1]):
        skipped = part == "time" and index > 0 and f == 1
        count.linear(width, 3 * width, 0 if skipped else tokens)
        count.linear(width, width, 0 if skipped else tokens)
        count.parameters += head_scales
        if not skipped:
            queries, times = {"space": (s, f), "time": (f, s), "joint": (tokens, 1)}[part]
            count.attention(queries, queries, width, times)
    if crossed:
        count.linear(width, width, tokens)
        count.linear(width, 2 * width, told)
        count.linear(width, width, tokens)
        count.attention(tokens, crossed, width)
        count.parameters += head_scales + norm
    inner = mlp_width(width, c["mlp_ratio"], c["mlp"])
    count.linear(width, inner * (2 if c["mlp"] == "swiglu" else 1), tokens)
    count.linear(inner, width, tokens)
    if c["conditioning"] == "shared-adaln":
        count.parameters += _modulated_width(c, parts)
    elif CONDITIONINGS[c["conditioning"]]:
        chunks = CONDITIONINGS[c["conditioning"]]
        count.linear(width, 2 * chunks * width, frames)
        if len(parts) == 3:
            count.linear(width, chunks * width, frames if f > 1 else 0)
    else:
        count.parameters += len(parts) * norm


def _last(count: _Count, c: dict[str, Any], *, tokens: int, frames: int) -> None:
    width = c["hidden_size"]
    if c["conditioning"] == "shared-adaln":
        count.parameters += 2 * width
    elif CONDITIONINGS[c["conditioning"]]:
        count.linear(width, 2 * width, frames)
    else:
        count.parameters += width * (2 if c["norm"] == "layer" else 1)
    count.linear(width, _volume(c) * (c["out_channels"] or c["in_channels"]), tokens)


def _modulated_width(c: dict[str, Any], parts: tuple[str, ...]) -> int:
    return len(parts) * CONDITIONINGS[c["conditioning"]] * int(c["hidden_size"])


def _volume(c: dict[str, Any]) -> int:
    pt, ph, pw = c["patch_size"]
    return int(pt * ph * pw)
