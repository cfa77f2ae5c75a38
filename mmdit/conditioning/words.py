"""The embedded text encoder: small, made for one set of captions, trained along with the network, no download.

Its vocabulary is the captions' own words, so it needs no large corpus to learn from, and cannot read other words.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from mmdit import seeds
from mmdit.conditioning.text import TextEncoder, check_prompts
from mmdit.errors import Refused

PAD, UNKNOWN, BEGIN, END = MARKS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
MAX_WORDS = 30_000


def build_text_encoder(
    captions: Sequence[str],
    *,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    max_tokens: int = 32,
    max_words: int = MAX_WORDS,
    seed: int = 0,
) -> TextEncoder:
    """A T5 encoder of a small config, not trained yet, with a tokenizer of the captions' words.

    Its word vectors start large and its pooled output is their mean, so that unlike prompts are told apart from the
    first step on; CLIP's text transformer starts with nearly the same pooled output for all of them. Words are in lower
    case, punctuation stands apart. The vocabulary keeps the `max_words` most frequent words. `max_tokens` counts the
    begin and end marks. Weights are a function of the seed and the vocabulary alone. Raises Refused for sizes that do
    not fit together.
    """
    from transformers import T5Config, T5EncoderModel

    if min(width, depth, heads) < 1 or width % heads:
        raise Refused("the text encoder's width must divide by its heads", got=f"width {width}, {heads} heads")
    tokenizer = build_tokenizer(captions, max_tokens=max_tokens, max_words=max_words)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // heads,
        d_ff=2 * width,
        num_layers=depth,
        num_heads=heads,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed_at(seed, "text_encoder"))
        model = T5EncoderModel(config)
    # No caption has the unknown word, so it is never trained: it says nothing rather than something random.
    with torch.no_grad():
        model.get_input_embeddings().weight[tokenizer.unk_token_id] = 0
    return TextEncoder(model, tokenizer, max_tokens=max_tokens)


def build_tokenizer(captions: Sequence[str], *, max_tokens: int, max_words: int = MAX_WORDS) -> Any:
    """A fast tokenizer whose tokens are the captions' words, the most frequent first.

    Punctuation that no caption has is left out of a prompt; any other unknown word becomes [UNK].
    """
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if max_tokens < 3:
        raise Refused("a prompt needs more tokens", got=max_tokens, expected="3 or more (two are the marks)")
    fold = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    counts = Counter(
        word for caption in check_prompts(captions) for word, _ in split.pre_tokenize_str(fold.normalize_str(caption))
    )
    words = sorted(counts, key=lambda word: (-counts[word], word))[:max_words]
    marks_free = [word for word in words if word not in MARKS]
    vocabulary = {word: position for position, word in enumerate([*MARKS, *marks_free])}
    known_marks = "".join(f"\\x{{{ord(letter):x}}}" for letter in sorted({c for word in marks_free for c in word}))
    stray = rf"[\p{{P}}&&[^{known_marks}]]" if known_marks else r"\p{P}"
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([fold, normalizers.Replace(Regex(stray), " ")])
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}", special_tokens=[(BEGIN, vocabulary[BEGIN]), (END, vocabulary[END])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=max_tokens,
    )
