"""What a codec's training is told: the recipe of `mmdit train-codec`."""

import difflib
import inspect
from typing import Any, Literal

from pydantic import Field, field_validator

from mmdit.config import Config, parse_config
from mmdit.errors import Refused
from mmdit.training.codec_data import Kind


class CodecRecipe(Config):
    """A recipe for `mmdit train-codec`."""

    clips: str
    """Folder of clips with a captions.csv that has the splits train, validation and held_out."""
    size: tuple[int, int] = (64, 48)
    """Height and width the clips are read at."""
    frames: int = Field(17, ge=1)
    """Frames a clip is read with."""
    fps: float = Field(8.0, gt=0)
    """Frames a second the clips are read at."""
    most_clips: int | None = Field(None, ge=1)
    """At most so many training clips; by default all."""
    vae: dict[str, Any]
    """Settings of diffusers' AutoencoderKLLTXVideo."""
    kinds: tuple[Kind, ...] = Field(("clip", "clip", "long", "clip", "clip", "mosaic", "clip", "image"), min_length=1)
    """The kind of batch of each step, in turn: clip, long, image, mosaic, enlarged."""
    batch_size: int = Field(8, ge=1)
    """Clips a step, for batches of the kind "clip"; the other kinds are as large as costs about as much."""
    batch_frames: int = Field(9, ge=1)
    """Frames of the clips in a batch of the kind "clip"."""
    steps: int = Field(gt=0)
    """Steps in all. May be changed while a run has not come to its decay."""
    warmup_steps: int = Field(50, ge=1)
    """Steps over which the learning rate rises."""
    decay_steps: int = Field(ge=0)
    """Steps at the end over which the learning rate falls to zero, in a straight line."""
    muon_lr: float = Field(3e-3, gt=0)
    """Learning rate of the kernels, all but the last of encoder and decoder, under Muon."""
    lr: float = Field(2e-3, gt=0)
    """Learning rate of everything else, under AdamW."""
    latent_noise: float = Field(0.1, gt=0)
    """Deviation of the noise the decoder sees, relative to that of each latent channel."""
    absolute: float = Field(0.1, ge=0)
    """Weight of the absolute error beside the squared one."""
    edges: float = Field(0.1, ge=0)
    """Weight of the absolute error of differences between neighbouring pixels."""
    decay_absolute: float | None = Field(None, ge=0)
    """The same as `absolute`, while the learning rate falls; by default that."""
    decay_edges: float | None = Field(None, ge=0)
    """The same as `edges`, while the learning rate falls; by default that."""
    pull: float = Field(1e-3, ge=0)
    """Weight of the pull of each latent channel toward zero mean and unit deviation."""
    ema: float = Field(0.998, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what is kept."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the products while training."""
    threads: int = Field(1, ge=1)
    """CPU threads."""
    seed: int = 0
    """Seed of weights, batches and noise."""
    save_every: int = Field(500, ge=1)
    """Steps between checkpoints; each also measures on validation clips and writes the codec as it is."""
    validation_clips: int = Field(64, ge=1)
    """Clips measured on at each checkpoint."""
    trained: Literal["all", "decoder"] = "all"
    """What is trained. With the encoder left as it is, so are the latents."""
    then: dict[str, Any] | None = None
    """A second stage: changes to this recipe, for a run that begins with the averaged weights of this one."""

    @field_validator("vae")
    @classmethod
    def _known_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        from diffusers import AutoencoderKLLTXVideo

        known = list(inspect.signature(AutoencoderKLLTXVideo).parameters)
        for key in settings:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise Refused(
                    "unknown config key", got=f"vae.{key}", expected="a known key", fix=f"did you mean vae.{near}?"
                )
        return settings


# What may differ when a run goes on, as it does not change the numbers; and what does so from the decay on only.
_FREE = {"threads", "save_every", "validation_clips", "then"}
_DECAY = ("steps", "decay_steps", "decay_absolute", "decay_edges")


def second_stage(recipe: CodecRecipe, where: str) -> CodecRecipe | None:
    """The recipe of the second stage, if there is one: `then` over the first, `vae` key by key.

    Raises:
        Refused: `then` has a key that a recipe does not have, or a value that does not fit.
    """
    if recipe.then is None:
        return None
    first = recipe.model_dump(exclude={"then"})
    vae = {**recipe.vae, **recipe.then.get("vae", {})}
    return parse_config(CodecRecipe, {**first, **recipe.then, "vae": vae}, where=f"{where}: then")


def may_go_on(recipe: CodecRecipe, before: CodecRecipe, step: int, where: object) -> None:
    """Refuses to go on at `step` with a recipe that would not give what it gives from the start.

    Raises:
        Refused: a setting differs from that of the recipe `before`, or the length does after the decay began.
    """
    was = before.model_dump(mode="json")
    for key, value in recipe.model_dump(mode="json").items():
        if key not in _FREE and key not in _DECAY and was[key] != value:
            raise Refused(
                "the run was begun with another recipe",
                where=where,
                got=f"{key} {value}",
                expected=f"{key} {was[key]}",
                fix="use the recipe it was begun with, or another folder",
            )
    now, then = ({key: getattr(one, key) for key in _DECAY} for one in (recipe, before))
    if now != then and step > min(one.steps - one.decay_steps for one in (recipe, before)):
        raise Refused(
            "the learning rate has begun to fall, and with it the end of the run is settled",
            where=where,
            got=f"{_words(now)} at step {step}",
            expected=_words(then),
            fix="use the recipe it was begun with, or another folder",
        )


def _words(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items() if value is not None)


def loss_weights(recipe: CodecRecipe, step: int) -> tuple[float, float]:
    """The weights of the absolute error and of the edges at a step."""
    absolute, edges = recipe.absolute, recipe.edges
    if step >= recipe.steps - recipe.decay_steps:
        absolute = absolute if recipe.decay_absolute is None else recipe.decay_absolute
        edges = edges if recipe.decay_edges is None else recipe.decay_edges
    return absolute, edges


def learning_rate_scale(recipe: CodecRecipe, step: int) -> float:
    """The share of the full learning rate at a step, from 0: a rise, a plateau, a straight fall to zero."""
    rise = min(1.0, (step + 1) / recipe.warmup_steps)
    fall = min(1.0, (recipe.steps - step) / recipe.decay_steps) if recipe.decay_steps else 1.0
    return min(rise, fall)
