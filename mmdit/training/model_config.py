"""The part of a recipe that says what is trained: the network, and the process that it undoes."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from mmdit.config import Config, refuse_unread
from mmdit.diffusion import GaussianDiffusion, RectifiedFlow


class ModelConfig(Config):
    """The network; sizes of the latents come from the store."""

    network: Literal["dit", "unet"] = "dit"
    """"dit", or "unet": diffusers' U-Net of clips, to compare a DiT with. Of the keys below it has depth (residual
    blocks of each of its three levels), hidden_size (channels of the finest), num_heads, and patch_size ([1, 1, 1]
    unless set)."""
    preset: str = "tiny"
    """A named size (DiT-S/2 to DiT-XL/8, tiny); the fields below override it where they are set."""
    depth: int | None = Field(None, ge=1)
    """Number of blocks."""
    hidden_size: int | None = Field(None, ge=8)
    """Width."""
    num_heads: int | None = Field(None, ge=1)
    """Attention heads."""
    patch_size: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    """(time, height, width) of a patch, in latent cells."""
    mlp_ratio: float = Field(4.0, gt=0.0)
    """Inner width of the MLP over the width."""
    layout: Literal["space", "factorized", "alternating", "joint"] = "factorized"
    """Which attentions each block has."""
    conditioning: Literal["adaln-zero", "adaln", "shared-adaln", "cross-attention", "in-context"] = "adaln-zero"
    """How timestep, labels and pooled text enter: their sum modulates the blocks, or each is a token."""
    text_tokens_by: Literal["cross-attention", "in-context"] | None = None
    """How each token of the caption enters, beside the pooled text; null for the pooled text alone."""
    positions: Literal["sincos", "rotary"] = "sincos"
    """How tokens know their place."""
    interpolate: bool = False
    """Scale positions on other grids to span what they span on the latents that it is trained on."""
    timestep_spacing: Literal[127, 128] = 128
    """Steps that the frequencies of a timestep are spaced over: 128 as in the paper, 127 as in diffusers' DiT."""
    norm: Literal["layer", "rms"] = "layer"
    """Norm before each sub-layer."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Kind of MLP."""
    qk_norm: bool = False
    """RMS norm on queries and keys."""
    attention_backend: Literal["auto", "math", "sdpa", "xformers"] = "auto"
    """Attention kernel."""
    checkpointing: int = Field(0, ge=0)
    """Every so-many-th block keeps only its input and is computed again in the backward pass; 0 for none. 1 saves the
    most memory, and costs about a third more time."""

    @model_validator(mode="after")
    def _a_unet_reads_few_keys(self) -> Self:
        if self.network == "unet":
            read = {"network", "depth", "hidden_size", "num_heads", "patch_size"}
            for name in type(self).model_fields:
                if name not in read:
                    refuse_unread(self, name, "model.network unet", "model.network dit")
        return self


class FlowConfig(Config):
    """Rectified flow: the network predicts the velocity."""

    times: Literal["logit-normal", "uniform", "mode"] = "logit-normal"
    """Distribution of the times that are trained."""
    shift: Annotated[float, Field(gt=0.0)] | Literal["auto"] = 1.0
    """Shift of the times toward noise, in training and sampling; "auto" is the root of (tokens / 256)."""
    mean: float = 0.0
    """Mean of the normal under logit-normal times; above 0 for more noise."""
    scale: float = Field(1.0, gt=0.0)
    """Deviation of the normal under logit-normal times."""
    mode: float = 1.29
    """How far the times "mode" are from uniform, -1 to 1.75; above 0 for the middle, below for the ends."""

    @model_validator(mode="after")
    def _makes_a_process(self) -> Self:
        RectifiedFlow(**self.model_dump() | {"shift": 1.0})
        return self


class DiffusionConfig(Config):
    """Gaussian diffusion, in place of the flow."""

    betas: Literal["linear", "cosine"] = "linear"
    """How the noise grows over the timesteps."""
    prediction: Literal["epsilon", "v", "x0"] = "epsilon"
    """What the network gives: the noise, the velocity of 2202.00512, or the data."""
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "learned_range"
    """Of a sampling step; a learned one doubles the channels that the network gives."""
    min_snr: float | None = Field(None, gt=0.0)
    """Gamma of the min-SNR weighting of the loss (5 is usual); null weighs all timesteps alike."""
    zero_terminal_snr: bool = False
    """Make the last timestep noise alone; for v and x0."""
    timesteps: int = Field(1000, ge=21, le=1000)
    """How many there are."""

    @model_validator(mode="after")
    def _makes_a_process(self) -> Self:
        GaussianDiffusion(**self.model_dump())
        return self


class LoraConfig(Config):
    """Train small matrices beside the frozen ones of the network in `init_from`, in place of all its weights."""

    rank: int = Field(16, ge=1)
    """Rank of the product of two matrices that is added to each target."""
    alpha: float = Field(16.0, gt=0.0)
    """The product is scaled by alpha / rank."""
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Linear layers, as their names end: qkv, time_attn.proj, mlp.fc1, adaLN_modulation.1, ...; null for all of the
    blocks' attentions and MLPs."""
