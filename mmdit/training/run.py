"""A run: everything that training holds, and how it is put together from a recipe."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from mmdit.conditioning import TextEncoder, build_text_encoder, load_text_encoder
from mmdit.diffusion.samplers import Process
from mmdit.latents.index import Store
from mmdit.models import DiT
from mmdit.seeds import seed_at
from mmdit.training.build import Inputs, build_network, build_process
from mmdit.training.config import RunConfig
from mmdit.training.data import TrainingData
from mmdit.training.ema import EMA
from mmdit.training.optimizer import make_optimizers
from mmdit.training.videos import open_data

# What each caption of a split is to the trainee: (ids, mask) for a trained encoder; for a frozen one (pooled,), and
# (pooled, tokens, mask) where the network reads the tokens of the text.
CaptionTable = tuple[Tensor, ...]


class Trainee(nn.Module):
    """What is trained, as one module: the network, and the text encoder where it is trained along."""

    def __init__(self, transformer: DiT, text_encoder: TextEncoder | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(
        self, latents: Tensor, timesteps: Tensor, labels: Tensor | None, captions: CaptionTable | None
    ) -> Tensor:
        """Noised latents (B, C, F, H, W) to the prediction; `captions` are rows of a caption table."""
        text, tokens = None, {}
        if captions is not None:
            if self.text_encoder is not None:
                said = self.text_encoder(*captions)
                captions = said.pooled, said.tokens, said.mask
            text = captions[0]
            if self.transformer.config.text_token_dim:
                tokens = {"text_tokens": captions[1], "text_mask": captions[2]}
        return self.transformer(latents, timesteps, labels=labels, text=text, **tokens)


@dataclass
class Run:
    """Everything a run holds while it is trained."""

    config: RunConfig
    folder: Path
    accelerator: Accelerator
    store: Store
    process: Process
    splits: dict[str, TrainingData]
    """"train", and "validation" where the store has such a split."""
    captions: dict[str, CaptionTable]
    """For each split, where the recipe conditions on text."""
    trainee: Trainee
    module: nn.Module
    """The trainee as it is called in a step: compiled where the recipe says so, and wrapped by accelerate."""
    optimizers: list[torch.optim.Optimizer]
    ema: EMA
    scaler: torch.amp.GradScaler
    """Keeps float16 gradients in range; does nothing in other precisions."""
    step: int = 0
    """Optimizer steps done."""
    bad_steps: int = 0
    """Steps in a row without a finite loss and gradient."""
    skipped: int = 0
    """Such steps since the run began."""
    window: tuple[float, int] = (0.0, 0)
    """Sum and count of the finite losses since the last logged line."""
    text_fingerprint: str | None = None
    """Of the text encoder, where it is a frozen one."""
    data: dict[str, Any] = field(default_factory=dict)
    """What checkpoints keep of the data: `data_state`."""


def begin_run(config: RunConfig, folder: Path, accelerator: Accelerator) -> Run:
    """Reads the store and builds the network and all that trains it, at step 0.

    Raises:
        Refused: the store does not hold what the recipe asks for.
    """
    store = open_data(config.data, accelerator.device, folder)
    process = build_process(config, store.latent_shape)
    splits = {"train": TrainingData(store, config.data.split, config, process)}
    if len(store.split(config.data.validation_split)) > 0:
        splits["validation"] = TrainingData(store, config.data.validation_split, config, process)
    text_encoder = _text_encoder(config, splits["train"].captions)
    is_trained = text_encoder is not None and text_encoder.training
    captions = {
        name: _caption_table(text_encoder, split.captions, config.model.text_tokens_by is not None)
        for name, split in splits.items()
        if text_encoder is not None
    }
    set_seed(seed_at(config.seed, "weights") % 2**32)  # initial weights come from torch's own generators
    text_dim = text_encoder.dim if text_encoder is not None else 0
    transformer = build_network(config, Inputs(store.latent_shape, len(store.labels), text_dim))
    trainee = Trainee(transformer, text_encoder if is_trained else None)
    trainee.to(accelerator.device)  # before optimizers and averages take their weights
    forward = torch.compile(trainee) if config.compile else trainee
    module, *optimizers = accelerator.prepare(forward, *make_optimizers(trainee, config.optimizer))
    ema = EMA(trainee, config.ema_decay, "cpu" if config.ema_device == "cpu" else None)
    scaler = torch.amp.GradScaler(accelerator.device.type, enabled=config.precision == "float16")
    run = Run(config, folder, accelerator, store, process, splits, captions, trainee, module, optimizers, ema, scaler)
    run.text_fingerprint = text_encoder.fingerprint if text_encoder is not None and not is_trained else None
    return run


def _text_encoder(config: RunConfig, captions: list[str]) -> TextEncoder | None:
    """In training mode exactly when it is to be trained."""
    text = config.conditions.text
    if text is None:
        return None
    if text.encoder != "embedded":
        return load_text_encoder(text.encoder)
    encoder = build_text_encoder(
        captions,
        width=text.width,
        depth=text.depth,
        heads=text.heads,
        max_tokens=text.max_tokens,
        seed=seed_at(config.seed, "text encoder"),
    )
    return encoder.train()


@torch.no_grad()
def _caption_table(encoder: TextEncoder, captions: list[str], with_tokens: bool) -> CaptionTable:
    ids, mask = encoder.tokenize(captions)
    longest = int(mask.sum(1).max())  # padding that no caption needs would cost time in every step
    if encoder.training:
        return ids[:, :longest], mask[:, :longest]
    said = [encoder(i, m) for i, m in zip(_parts(ids), _parts(mask), strict=True)]
    pooled = torch.cat([part.pooled.cpu() for part in said])
    if not with_tokens:
        return (pooled,)
    return pooled, torch.cat([part.tokens[:, :longest].cpu() for part in said]), mask[:, :longest]


def _parts(rows: Tensor) -> Iterator[Tensor]:
    yield from rows.split(64)
