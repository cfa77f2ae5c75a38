"""What is trained, as one module."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from mmdit.conditioning import TextEncoder
from mmdit.models import Network
from mmdit.training.texts import Text


class Trainee(nn.Module):
    """What is trained, as one module: the network, and the text encoder where it is trained along."""

    def __init__(self, transformer: Network, text_encoder: TextEncoder | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder

    def forward(self, latents: Tensor, timesteps: Tensor, labels: Tensor | None, text: Text | None) -> Tensor:
        """Noised latents (B, C, F, H, W) to the prediction; `text` is what `Batch.text` holds."""
        pooled, tokens = None, {}
        if text is not None:
            if self.text_encoder is not None:
                said = self.text_encoder(*text)
                text = said.pooled, said.tokens, said.mask
            pooled = text[0]
            if self.transformer.config.get("text_token_dim"):
                tokens = {"text_tokens": text[1], "text_mask": text[2]}
        return self.transformer(latents, timesteps, labels=labels, text=pooled, **tokens)


def with_weights(trainee: Trainee, weights: Mapping[str, Tensor]) -> Trainee:
    """A copy with these weights and buffers, by name, not copied themselves; others are shared with the trainee."""
    own = dict(trainee.named_parameters())
    new = {k: nn.Parameter(weights[k].to(w.dtype), w.requires_grad) if k in weights else w for k, w in own.items()}
    made = copy.deepcopy(trainee, {id(own[name]): weight for name, weight in new.items()})  # "copied already"
    made.load_state_dict({k: weights[k] for k, _ in made.named_buffers() if k in weights}, strict=False)
    return made
