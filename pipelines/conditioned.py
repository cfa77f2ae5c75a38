"""How conditions reach the network: prompts read, labels numbered, guidance around them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmdit.conditioning import Labels, TextEncoder
from mmdit.conditioning.text import TextFeatures
from mmdit.diffusion import Guidance
from mmdit.pipelines.faster import FasterSampling
from mmdit.pipelines.null_conditions import NullConditions
from mmdit.pipelines.request import Condition


class Conditioned(FasterSampling):
    """The part of `ClipPipeline` that tells the network what to show."""

    text_encoder: Any
    tokenizer: Any
    _execution_device: torch.device

    @property
    def labels(self) -> Labels | None:
        """The labels the network knows, or None."""
        return Labels(self.config.label_names) if self.config.label_names else None

    @property
    def has_text(self) -> bool:
        """Whether the network reads prompts."""
        return bool(self.transformer.config.text_dim > 0)

    @property
    def null_conditions(self) -> NullConditions:
        """Which conditions can be left out."""
        return NullConditions(self.labels is not None, self.has_text, self.config.get("null_conditions"))

    def _read_prompts(self, prompts: list[str]) -> dict[str, TextFeatures] | None:
        """The features of each prompt and of the empty one, which is the null condition, without the batch axis.

        One is read at a time: its features are then the same to the last bit whatever else is asked for.
        """
        if not self.has_text:
            return None
        encoder = TextEncoder(self.text_encoder, self.tokenizer)
        unlike = list(dict.fromkeys(["", *prompts]))
        ids, mask = encoder.tokenize(unlike)  # once for all, so that a warning comes once
        parts = zip(ids.split(1), mask.split(1), strict=True)
        device = self._execution_device
        features = [encoder(i.to(device), m.to(device)) for i, m in parts]
        rows = [row for part in features for row in zip(part.pooled, part.tokens, part.mask, strict=True)]
        return {prompt: TextFeatures(*row) for prompt, row in zip(unlike, rows, strict=True)}

    def _predictor(
        self,
        conditions: list[Condition],
        nothing: list[Condition],
        text: dict[str, TextFeatures] | None,
        guidance: Guidance,
        precision: str,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """predict(x_t, timesteps) of a batch under its conditions, with guidance away from `nothing`."""
        parts = {"conditional": conditions, "null": nothing, "both": conditions + nothing}
        inputs = {name: self._inputs(part, text) for name, part in parts.items()}
        ask = self._start()

        def predict(part: str, x_t: Tensor, timesteps: Tensor) -> Tensor:
            with torch.autocast(x_t.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
                return ask(part, x_t.to(self.transformer.dtype), timesteps, **inputs[part])

        return self._guided(predict, guidance)

    def _inputs(self, conditions: list[Condition], text: dict[str, TextFeatures] | None) -> dict[str, Tensor]:
        """What the network takes besides latents and timesteps, a row a condition."""
        inputs = {}
        if self.labels is not None:
            null = self.labels.null_id
            ids = [null if condition.label is None else condition.label for condition in conditions]
            inputs["labels"] = torch.tensor(ids, device=self._execution_device)
        if text is not None:
            said = [text[condition.prompt] for condition in conditions]
            inputs["text"] = torch.stack([features.pooled for features in said])
            if self.transformer.config.get("text_token_dim"):
                inputs["text_tokens"] = torch.stack([features.tokens for features in said])
                inputs["text_mask"] = torch.stack([features.mask for features in said])
        return inputs
