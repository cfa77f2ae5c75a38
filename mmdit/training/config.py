"""The recipe of a training run. The docstring under each field is its help."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from mmdit.config import Config, refuse_unread
from mmdit.errors import Refused
from mmdit.training.data_config import DataConfig
from mmdit.training.model_config import DiffusionConfig, FlowConfig, LoraConfig, ModelConfig
from mmdit.training.watching import SampleConfig, Trackers

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class TextConfig(Config):
    """How captions become vectors."""

    encoder: str = "embedded"
    """"embedded" (a small one, trained with the network), or a folder or hub name of a transformers encoder, frozen."""
    width: int = Field(128, ge=8)
    """Width of the embedded encoder."""
    depth: int = Field(2, ge=1)
    """Layers of the embedded encoder."""
    heads: int = Field(4, ge=1)
    """Attention heads of the embedded encoder."""
    max_tokens: int = Field(24, ge=3)
    """Longest caption in tokens, for the embedded encoder; longer ones are cut, and counted."""

    @model_validator(mode="after")
    def _sizes_are_of_the_embedded_encoder(self) -> Self:
        if self.encoder != "embedded":
            for name in ("width", "depth", "heads", "max_tokens"):
                refuse_unread(self, name, f"text.encoder {self.encoder}", "text.encoder embedded")
        return self


class ConditionConfig(Config):
    """What the network is told, and how often it is not told it, so that guidance has a null condition."""

    labels: bool = False
    """Condition on class labels."""
    text: TextConfig | None = None
    """Condition on captions; null for none."""
    drop_label: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the samples whose label is the null label."""
    drop_text: float = Field(0.1, ge=0.0, le=1.0)
    """Share of the samples whose caption is the empty prompt."""
    given_frames: dict[Literal["first", "last", "both", "prefix", "every-nth"], Share] = Field({})
    """Share of the samples of which the network is shown frames and makes the others: the first latent frame, the last,
    both, the first few, or every n-th; of the rest none is given. {first: 0.4, both: 0.1} for one network that makes
    videos from text, from an image, and between two."""

    @model_validator(mode="after")
    def _only_what_is_told_is_dropped(self) -> Self:
        if not self.labels:
            refuse_unread(self, "drop_label", "no labels", "conditions.labels")
        if self.text is None:
            refuse_unread(self, "drop_text", "no text", "conditions.text")
        if (total := sum(self.given_frames.values())) > 1:
            raise Refused("the shares of conditions.given_frames", got=f"{total:g} in all", expected="at most 1")
        return self


class OptimizerConfig(Config):
    """AdamW, with Muon for the matrices of the network as an option; linear warm-up, then a decay."""

    lr: float = Field(1e-4, gt=0.0)
    """Learning rate of AdamW."""
    adamw: Literal["fused", "8bit"] = "fused"
    """"fused", or "8bit": a quarter of the memory for AdamW's state, through torchao, which compiles its step."""
    muon_lr: float | None = Field(None, gt=0.0)
    """Learning rate of Muon for the network's matrices between hidden vectors; null trains them with AdamW too."""
    muon_rounds: int = Field(5, ge=1)
    """Newton-Schulz rounds that make Muon's step orthogonal; fewer are quicker and rougher."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Of AdamW."""
    weight_decay: float = Field(0.0, ge=0.0)
    """Decoupled weight decay, of both."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up: stay, or fall to zero at the last step."""
    clip_norm: float | None = Field(1.0, gt=0.0)
    """Largest gradient norm; null does not clip."""


class RunConfig(Config):
    """A training run."""

    seed: int = 0
    """Order, noise, timesteps, dropout and initial weights are functions of it."""
    steps: int = Field(ge=1)
    """Optimizer steps in all."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the products; "auto" is bfloat16 where the device is quicker at it, else float32; a run goes on in
    what it was begun with. float16, with a loss scaler, is for CUDA devices without bfloat16."""
    compile: bool = False
    """Compile the network with torch.compile: quicker steps after a first one that takes minutes."""
    sharding: Literal["none", "full"] = "none"
    """How several processes hold the weights: "none" has a copy on each (DDP), "full" has a part of every weight, with
    its average and optimizer state, on each (FSDP2), for networks too large for one. Checkpoints go with both."""
    data: DataConfig
    conditions: ConditionConfig = ConditionConfig()
    model: ModelConfig = ModelConfig()
    flow: FlowConfig | None = None
    """Train a rectified flow, the default; null where `diffusion` is set."""
    diffusion: DiffusionConfig | None = None
    """Train a Gaussian diffusion in place of the flow; null for the flow."""
    lora: LoraConfig | None = None
    """Fine-tune by LoRA, through PEFT; null trains all weights."""
    optimizer: OptimizerConfig = OptimizerConfig()
    ema_decay: Decay | Annotated[tuple[Decay, ...], Field(min_length=1)] = 0.9999
    """Decay of the weights' moving average, 0 to below 1; it rises to this from 0 over the first steps. A list keeps an
    average for each; validation, samples and exports use the first."""
    ema_device: Literal["same", "cpu"] = "same"
    """Where the averages are kept: beside the weights, or in the CPU's memory, which is slower."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of metrics.jsonl."""
    validate_every: int = Field(500, ge=1)
    """Steps between measurements of the held-out loss."""
    validation_clips: int = Field(64, ge=1)
    """At most so many clips for the held-out losses; each takes six forward passes."""
    samples: SampleConfig | None = None
    """Sample clips while training; null for none."""
    trackers: Trackers = ("tensorboard",)
    """Where metrics and samples go beside the run's own files: names of accelerate's trackers (tensorboard, wandb,
    mlflow, ...). TensorBoard keeps them in trackers/ of the run, and no other is told anything unless it is named."""
    checkpoint_every: int = Field(1000, ge=1)
    """Steps between checkpoints; one is always written at the end."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay on disk."""
    keep_best: bool = False
    """Keep the checkpoint with the lowest held-out loss too; validate_every must divide checkpoint_every."""
    keep_every: int | None = Field(None, ge=1)
    """Checkpoints whose step is a multiple of it stay for good; null for none."""
    keep_hours: float | None = Field(None, gt=0.0)
    """Checkpoints written at most so many hours before the newest one stay too; null for none."""
    init_from: str | None = None
    """Start a new run from the weights of a run, a checkpoint, a pipeline folder or a network's folder; null from
    random ones. A run that is resumed does not read it."""
    init_weights: Literal["ema", "raw"] = "ema"
    """Which weights of a checkpoint `init_from` takes: the averaged ones, or those last trained."""
    stop_after_bad_steps: int = Field(10, ge=1)
    """So many steps in a row without a finite loss and gradient stop the run."""

    @model_validator(mode="before")
    @classmethod
    def _a_flow_unless_a_diffusion(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("flow") is None and values.get("diffusion") is None:
            return {**values, "flow": {}}
        return values

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.flow is not None and self.diffusion is not None:
            raise Refused("a recipe trains one process", got="flow and diffusion", fix="set flow: null, or diffusion")
        if self.model.text_tokens_by is not None and self.conditions.text is None:
            raise Refused(
                "no text to read tokens of", got="model.text_tokens_by and conditions.text null", fix="set one of them"
            )
        if self.model.network == "unet":
            given = self.conditions.given_frames
            for key, value in (("conditions.given_frames", given), ("lora", self.lora), ("compile", self.compile)):
                if value:
                    raise Refused(
                        "a U-Net does not go with this", got=f"{key} with model.network unet", expected="a DiT",
                        fix=f"leave out {key}, or set model.network=dit",
                    )  # fmt: skip
        if self.lora is not None:
            if self.init_from is None:
                raise Refused(
                    "a LoRA is trained on weights that there are", got="lora without init_from",
                    fix="set init_from=RUN, or lora=null",
                )  # fmt: skip
            refuse_unread(self.optimizer, "muon_lr", "lora", "AdamW for the adapters")
        return self
