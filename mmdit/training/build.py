"""From a recipe to its process and its network."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from mmdit.diffusion import GaussianDiffusion, RectifiedFlow, shift_for_tokens
from mmdit.diffusion.samplers import Process
from mmdit.errors import Refused
from mmdit.models import Network, UNet, create_model, model_cost
from mmdit.models.checks import token_grid
from mmdit.models.presets import preset_options
from mmdit.models.unet import WIDTHS
from mmdit.training.config import ModelConfig, RunConfig


@dataclass(frozen=True)
class Inputs:
    """What a network of a recipe is fed with: known from the store and the text encoder.

    `latent_shape` is (channel, frame, height, width); `labels` the number of label names; `text_dim` the features of
    the text encoder, 0 for none.
    """

    latent_shape: tuple[int, int, int, int]
    labels: int = 0
    text_dim: int = 0


def build_process(config: RunConfig, latent_shape: tuple[int, int, int, int]) -> Process:
    """The process that the recipe trains; shift "auto" is by the tokens of latents (channel, frame, height, width).

    Raises:
        Refused: the patches do not divide the latents, or an unknown preset.
    """
    if config.diffusion is not None:
        return GaussianDiffusion(**config.diffusion.model_dump())
    assert config.flow is not None  # a recipe without either has a flow of defaults
    settings = config.flow.model_dump()
    if settings["shift"] == "auto":
        f, h, w = token_grid(latent_shape[1:], patch_size(config.model))
        settings["shift"] = shift_for_tokens(f * h * w)
    return RectifiedFlow(**settings)


def describe_process(process: Process) -> dict[str, Any]:
    """{"flow": settings} or {"diffusion": settings}, plain values: what `read_process` makes the process of."""
    return {"flow" if isinstance(process, RectifiedFlow) else "diffusion": asdict(process)}


def read_process(described: dict[str, Any]) -> Process:
    """The process that `describe_process` described; other keys are passed over."""
    if "diffusion" in described:
        return GaussianDiffusion(**described["diffusion"])
    return RectifiedFlow(**described["flow"])


def build_network(config: RunConfig, inputs: Inputs) -> Network:
    """A new network of the recipe, for these inputs; its weights come from torch's own generator.

    Raises:
        Refused: the recipe does not make a network, its patches do not divide the latents, or the store has no labels.
    """
    channels, frames, height, width = inputs.latent_shape
    token_grid((frames, height, width), patch_size(config.model))
    if config.conditions.labels and inputs.labels == 0:
        raise Refused("the store has no labels", got="conditions.labels", fix="encode with labels, or train without")
    learned = config.diffusion is not None and config.diffusion.variance == "learned_range"
    sizes: dict[str, Any] = {
        "sample_size": (frames, height, width),
        "in_channels": channels,
        "out_channels": 2 * channels if learned else None,
        "num_classes": inputs.labels if config.conditions.labels else 0,
        "text_dim": inputs.text_dim,
    }
    if config.model.network == "unet":
        return UNet(**sizes, **_unet_options(config.model))
    own = {"network", "preset", "checkpointing", "text_tokens_by"}
    options = config.model.model_dump(exclude=own, exclude_none=True)
    if config.model.text_tokens_by is not None:
        options |= {"text_token_dim": inputs.text_dim, "text_tokens_by": config.model.text_tokens_by}
    network = create_model(config.model.preset, **sizes, **options)
    if config.model.checkpointing:
        network.enable_gradient_checkpointing(config.model.checkpointing)
    return network


def clip_cost(model: ModelConfig, latent_shape: tuple[int, int, int, int]) -> int:
    """Multiply-accumulates of the recipe's network on one clip, without its conditions.

    Raises:
        Refused: the patches do not divide the latents.
    """
    if model.network == "unet":
        token_grid(latent_shape[1:], patch_size(model))
        options = {**_unet_options(model), "widths": WIDTHS}
    else:
        own = {"network", "checkpointing", "attention_backend", "text_tokens_by", "preset"}
        options = preset_options(model.preset) | model.model_dump(exclude=own, exclude_none=True)
    return model_cost({**options, "in_channels": latent_shape[0], "sample_size": latent_shape[1:]}).macs


def find_bottleneck(config: RunConfig, channels: int) -> str | None:
    """A warning where the network is narrower than a patch of latents of so many channels, and told to give noise.

    Of noise with n values a patch, a network of width d < n passes on d at most: a share 1 - d/n of it is never
    predicted. None where nothing is lost, and for a U-Net, whose last layer sees the places around too.
    """
    if config.model.network == "unet":
        return None
    values, width = channels * math.prod(patch_size(config.model)), _width(config.model)
    if width >= values or (config.diffusion is not None and config.diffusion.prediction == "x0"):
        return None
    return (
        f"model.hidden_size {width} is below the {values} values of a patch: {1 - width / values:.0%} of the noise "
        "cannot be predicted; take smaller patches, a greater width, or diffusion.prediction=x0"
    )


def _width(model: ModelConfig) -> int:
    width: int = model.hidden_size or preset_options(model.preset)["hidden_size"]
    return width


def patch_size(model: ModelConfig) -> tuple[int, int, int]:
    """(time, height, width) of a patch of the recipe's network."""
    if model.network == "unet":
        return model.patch_size or (1, 1, 1)
    patch: tuple[int, int, int] = model.patch_size or preset_options(model.preset)["patch_size"]
    return patch


def _unet_options(model: ModelConfig) -> dict[str, Any]:
    """What the recipe says of a U-Net, over the tiny preset's numbers."""
    sizes = model.model_dump(include={"depth", "hidden_size", "num_heads"}, exclude_none=True)
    return {**preset_options("tiny"), **sizes, "patch_size": patch_size(model)}
