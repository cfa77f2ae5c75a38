"""What a user has (words, a label) turned into what the network takes."""

from mmdit.conditioning.labels import Labels
from mmdit.conditioning.text import TextEncoder, TextFeatures, check_prompts, load_text_encoder
from mmdit.conditioning.words import build_text_encoder

__all__ = [
    "Labels",
    "TextEncoder",
    "TextFeatures",
    "build_text_encoder",
    "check_prompts",
    "load_text_encoder",
]
