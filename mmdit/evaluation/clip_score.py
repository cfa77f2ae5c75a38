"""CLIP score: how well the frames of a clip fit its caption.

Shapes: b clips, f frames, d features.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmdit.conditioning.text import quiet
from mmdit.errors import Refused
from mmdit.evaluation.features import ClipFeatures


class ClipScore:
    """How well the frames of each clip fit its caption: 100 max(cos, 0), mean over frames (arXiv 2104.08718).

    Args:
        clip: the model, which also gave the features of the frames.
    """

    def __init__(self, clip: ClipFeatures) -> None:
        from transformers import AutoTokenizer

        self.clip = clip
        self._longest = clip.network.config.text_config.max_position_embeddings
        try:
            with quiet():
                self.tokenizer: Any = AutoTokenizer.from_pretrained(str(clip.path), local_files_only=True)
        except (OSError, ValueError) as error:
            raise Refused("no tokenizer there", where=clip.path, got=(str(error).splitlines() or ["?"])[0]) from None

    @torch.no_grad()
    def __call__(self, features: Tensor, captions: list[str]) -> Tensor:
        """(b,). features: of the frames (b, f, d); captions: one a clip."""
        rows = []
        for caption in captions:  # one at a time: padding then makes no difference
            tokens = self.tokenizer(caption, truncation=True, max_length=self._longest, return_tensors="pt")
            tokens = tokens.to(self.clip.device)
            read = self.clip.network.text_model(**tokens).pooler_output
            rows.append(self.clip.network.text_projection(read).float().cpu())
        text = torch.cat(rows).unsqueeze(1)  # (b, 1, d)
        return 100 * F.cosine_similarity(features, text, dim=-1).clamp(min=0).mean(1)
