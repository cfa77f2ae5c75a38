"""The embedded text encoder: small, made for one set of captions, trained along with the network, no download.

Its vocabulary is the captions' own words, so it needs no large corpus to learn from, and cannot read other words.
"""

import math
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

    It starts as a list of the words that a prompt has: each word on an axis of its own as far as the width goes, longer
    the fewer captions have it, and every layer as identity. So unlike prompts are told apart from the first step on,
    which random word vectors took hundreds of steps to reach. Words are in lower case, punctuation stands apart. The
    vocabulary keeps the `max_words` most frequent words. `max_tokens` counts the begin and end marks. Weights are a
    function of the seed and the captions alone. Raises Refused for sizes that do not fit together.
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
        layer_norm_epsilon=1.0,  # soft: a word that says little stays short
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.seed_at(seed, "text_encoder"))
        model = T5EncoderModel(config)
    _start_as_word_list(model, tokenizer, captions)
    return TextEncoder(model, tokenizer, max_tokens=max_tokens)


@torch.no_grad()
def _start_as_word_list(model: Any, tokenizer: Any, captions: Sequence[str]) -> None:
    """Word vectors sqrt(width) log(captions / captions with the word), on axes; and nothing from the layers yet.

    Marks, and words that every caption has, start at zero. The unknown word stays there: it is in no caption, so it is
    never trained, and says nothing rather than something random.
    """
    table = model.get_input_embeddings().weight
    words, width = table.shape
    has = Counter(
        token for caption in dict.fromkeys(captions) for token in set(tokenizer(caption, verbose=False)["input_ids"])
    )
    total = max(1, len(dict.fromkeys(captions)))
    told = torch.tensor([math.log(total / has[word]) if has[word] else 0.0 for word in range(words)])
    told[tokenizer.all_special_ids] = 0.0
    axes = torch.nn.functional.normalize(table, dim=1)  # for words beyond the width: directions at random
    first = len(tokenizer.all_special_ids)
    on_axes = min(words - first, width)
    axes[first : first + on_axes] = torch.eye(width)[:on_axes]
    table.copy_(axes * told[:, None] * width**0.5)
    for name, weight in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            weight.zero_()


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
