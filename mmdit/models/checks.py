"""What a network refuses, before it does any work."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmdit.errors import Refused
from mmdit.models.attention import BACKENDS
from mmdit.models.block import CONDITIONINGS, LAYOUTS
from mmdit.models.positions import Triple

CHOICES = {
    "layout": tuple(LAYOUTS),
    "conditioning": tuple(CONDITIONINGS),
    "text_tokens_by": ("cross-attention", "in-context"),
    "positions": ("sincos", "rotary"),
    "norm": ("layer", "rms"),
    "mlp": ("gelu", "swiglu"),
    "attention_backend": BACKENDS,
}


def check_config(config: Mapping[str, Any]) -> None:
    """Refused where the arguments of a `DiT` do not make a network."""
    for name, known in CHOICES.items():
        if config[name] not in known:
            expected = f"one of {', '.join(known)}"
            raise Refused(f"unknown {name}", where="the model", got=repr(config[name]), expected=expected)
    for name in ("in_channels", "hidden_size", "depth", "num_heads"):
        if config[name] < 1:
            raise Refused(f"{name} is too small", where="the model", got=config[name], expected="at least 1")
    if config["hidden_size"] % (4 * config["num_heads"]):
        raise Refused(
            "the width does not divide into heads",
            where="the model",
            got=f"hidden_size {config['hidden_size']} and num_heads {config['num_heads']}",
            expected="a width that is a multiple of 4 x heads",
        )
    names = list(config["scalars"])
    if len(set(names)) < len(names) or not all(name.isidentifier() for name in names):
        raise Refused("bad names of scalars", where="the model", got=names, expected="words, each one once")


def check_latents(latents: Tensor, channels: int, patch: Triple) -> Triple:
    """The token grid (f, h, w) of latents (B, C, F, H, W); Refused, naming the nearest grid, where there is none."""
    if latents.ndim != 5 or latents.shape[1] != channels:
        raise Refused(
            "these are not latents of this network",
            got=f"shape {tuple(latents.shape)}",
            expected=f"(batch, {channels}, frames, height, width)",
        )
    return token_grid(tuple(latents.shape[2:]), patch)


def token_grid(latent_grid: tuple[int, ...], patch: Triple) -> Triple:
    """(F, H, W) of the latents to (f, h, w) of the tokens; Refused where the patch does not divide it."""
    if any(n < p or n % p for n, p in zip(latent_grid, patch, strict=True)):
        nearest = tuple(max(p, (n + (p - 1) // 2) // p * p) for n, p in zip(latent_grid, patch, strict=True))
        raise Refused(
            "the latent grid does not divide into patches",
            got=f"{tuple(latent_grid)} with patches {patch}",
            expected=f"multiples of the patch, nearest {nearest}",
        )
    f, h, w = (n // p for n, p in zip(latent_grid, patch, strict=True))
    return f, h, w


def check_timesteps(timesteps: Tensor, shape: tuple[int, ...], grid: Triple) -> None:
    """Refused unless there is a timestep for each sample, latent frame or token frame; shape is that of the latents."""
    batch, frames = shape[0], shape[2]
    if timesteps.ndim == 1 and timesteps.shape[0] == batch:
        return
    if timesteps.ndim == 2 and timesteps.shape[0] == batch and timesteps.shape[1] in (frames, grid[0]):
        return
    raise Refused(
        "the timesteps do not fit the latents",
        got=f"shape {tuple(timesteps.shape)}",
        expected=f"({batch},), or one a frame: ({batch}, {frames})",
    )


def check_given(
    model: nn.Module,
    *,
    labels: Tensor | None,
    text: Tensor | None,
    text_tokens: Tensor | None,
    text_mask: Tensor | None,
    scalars: Mapping[str, Tensor] | None,
) -> None:
    """Refused unless exactly what the network has an input for is given."""
    config: Any = model.config
    inputs = {
        "labels": (config.num_classes, labels),
        "text": (config.text_dim, text),
        "text_tokens": (config.get("text_token_dim", 0), text_tokens),
        "scalars": (len(config.get("scalars", ())), scalars or None),
    }
    for name, (wanted, value) in inputs.items():
        if bool(wanted) != (value is not None):
            are = "is" if name == "text" else "are"
            raise Refused(
                f"this network has {'an' if wanted else 'no'} input for {name}, "
                f"but {name} {are} {'missing' if wanted else 'given'}"
            )
    if set(scalars or ()) != set(config.get("scalars", ())):
        raise Refused("other scalars than the network's", got=sorted(scalars or ()), expected=sorted(config.scalars))
    if text_tokens is None and text_mask is not None:
        raise Refused("a text mask without text tokens")
    if text_tokens is not None:
        batch_and_length = tuple(text_tokens.shape[:2])
        if text_tokens.ndim != 3 or text_tokens.shape[1] < 1 or text_tokens.shape[2] != config.text_token_dim:
            expected = f"(batch, at least 1, {config.text_token_dim})"
            raise Refused("bad text tokens", got=f"shape {tuple(text_tokens.shape)}", expected=expected)
        if text_mask is not None and tuple(text_mask.shape) != batch_and_length:
            raise Refused("the text mask does not fit", got=tuple(text_mask.shape), expected=batch_and_length)
