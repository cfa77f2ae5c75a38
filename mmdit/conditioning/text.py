"""Text encoders: prompts in, numbers for the network out.

One class serves the small encoder that is trained along with the network (`mmdit.conditioning.words`) and the published
ones that stay as they are (CLIP, T5, UMT5 and others of transformers). The null condition is the empty prompt "".

Shapes: b prompts, n = max_tokens tokens (prompts are padded on the right), d = dim features.
"""

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mmdit.errors import Refused

log = logging.getLogger("mmdit.conditioning")

# model_type of a transformers config -> (class that holds the text encoder, how the pooled output is made)
CLASSES = {
    "clip": ("CLIPTextModel", "eos"),
    "clip_text_model": ("CLIPTextModel", "eos"),
    "t5": ("T5EncoderModel", "mean"),
    "mt5": ("MT5EncoderModel", "mean"),
    "umt5": ("UMT5EncoderModel", "mean"),
}
OTHER = ("AutoModel", "mean")
MAX_TOKENS = 256  # for tokenizers that name no limit of their own,
NO_LIMIT = 1_000_000  # which transformers writes as a number far above this
VOLATILE = {"transformers_version", "dtype", "architectures"}  # parts of a config that do not change what comes out


@dataclass(frozen=True)
class TextFeatures:
    """What the network is given for b prompts.

    `pooled` (b, d): one vector a prompt. `tokens` (b, n, d): one vector a token. `mask` (b, n): True at real tokens,
    the end mark included, False at padding.
    """

    pooled: Tensor
    tokens: Tensor
    mask: Tensor


class TextEncoder(nn.Module):
    """A transformers text model with its tokenizer.

    Deterministic, and the features of a prompt do not depend on the prompts beside it. The pooled output is the feature
    vector at the end mark for CLIP, and the mean over the real tokens for all others. Gradients flow into `model`
    unless it is frozen (`load_text_encoder` freezes, `build_text_encoder` does not).
    """

    def __init__(self, model: Any, tokenizer: Any, *, max_tokens: int | None = None) -> None:
        """Raises Refused for a limit that the model or its marks leave no room for."""
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        places = getattr(model.config, "max_position_embeddings", None)
        named = tokenizer.model_max_length if tokenizer.model_max_length < NO_LIMIT else MAX_TOKENS
        limit = max_tokens or min(named, places or named)
        if not 3 <= limit <= (places or limit):
            raise Refused("no such limit on tokens", got=limit, expected=f"3 to {places or 'any number of'} tokens")
        # The limit lives in the tokenizer, because it is saved with it.
        tokenizer.model_max_length = int(limit)
        self.pooling = CLASSES.get(model.config.model_type, OTHER)[1]
        self._told_of_truncation = False
        self._told_words: set[str] = set()

    @property
    def max_tokens(self) -> int:
        """Tokens a prompt is padded or cut to, begin and end marks included."""
        return self.tokenizer.model_max_length

    @property
    def dim(self) -> int:
        """Features of the pooled output, and of each token."""
        return self.model.config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (b, n) long, and their mask (b, n) bool, on the CPU.

        Prompts longer than n tokens lose their last words; a warning says how many did, once. Words that the vocabulary
        lacks are named in a warning, once each. Raises Refused for what is not text.
        """
        rows, lengths, unknown = self._token_rows(check_prompts(prompts))
        cut = [length for length in lengths if length > self.max_tokens]
        if cut and not self._told_of_truncation:
            self._told_of_truncation = True
            log.warning(
                "%d of %d prompts are longer than %d tokens (the longest has %d): their last words are not read",
                *(len(cut), len(rows), self.max_tokens, max(cut)),
            )
        new = [word for word in unknown if word not in self._told_words]
        if new:
            self._told_words.update(new)
            log.warning("words that the text encoder does not know, and cannot read: %s", _listed(new))
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(rows), self.max_tokens), self.tokenizer.eos_token_id if pad is None else pad)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = True
        return ids, mask

    def forward(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        """Features of tokenised prompts: ids (b, n) and mask (b, n) as `tokenize` gives them."""
        ids, mask = ids.to(self.device), mask.to(self.device)
        out = self.model(input_ids=ids, attention_mask=mask.long())
        tokens = out.last_hidden_state  # (b, n, d)
        mask = mask.to(tokens.device)  # a model that is offloaded runs on another device than it lies on
        if self.pooling == "eos":
            pooled = out.pooler_output  # (b, d)
        else:
            weight = mask.unsqueeze(-1).to(tokens.dtype)  # (b, n, 1)
            pooled = (tokens * weight).sum(1) / weight.sum(1).clamp_min(1)  # (b, d)
        return TextFeatures(pooled, tokens, mask)

    def encode(self, prompts: Sequence[str]) -> TextFeatures:
        """`tokenize` and `forward` in one."""
        return self(*self.tokenize(prompts))

    @property
    def fingerprint(self) -> str:
        """sha256 over all that decides the features: config, weights, vocabulary, token limit."""
        config = {k: v for k, v in self.model.config.to_dict().items() if k not in VOLATILE and not k.startswith("_")}
        rules = json.dumps([config, self.max_tokens, self.pooling, _vocabulary(self.tokenizer)], sort_keys=True)
        digest = hashlib.sha256(rules.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes `text_encoder/` and `tokenizer/` into a folder that the caller is making (files.new_folder)."""
        with quiet():
            self.model.save_pretrained(Path(folder) / "text_encoder")
            self.tokenizer.save_pretrained(Path(folder) / "tokenizer")

    def _token_rows(self, prompts: list[str]) -> tuple[list[list[int]], list[int], list[str]]:
        """Token ids a prompt, at most max_tokens each; their full lengths; and the unknown words."""
        # Padding and cutting are done here: a tokenizer told to do them keeps that as state and saves it.
        encoded = self.tokenizer(
            prompts, padding=False, truncation=False, return_special_tokens_mask=True, verbose=False
        )
        marks = {self.tokenizer.bos_token_id, self.tokenizer.eos_token_id, self.tokenizer.pad_token_id}
        rows, lengths = [], []
        for tokens, added in zip(encoded["input_ids"], encoded["special_tokens_mask"], strict=True):
            # A prompt that spells a mark ("[EOS]", "</s>") shall not end there: only the tokenizer sets marks.
            ids = [token for token, is_added in zip(tokens, added, strict=True) if is_added or token not in marks]
            cut = ids[: self.max_tokens]
            if len(ids) > self.max_tokens and added[-1]:
                cut[-1] = ids[-1]  # the end mark is what CLIP's pooled output is read at
            rows.append(cut)
            lengths.append(len(ids))
        return rows, lengths, _unknown(self.tokenizer, prompts, encoded)


def check_prompts(prompts: Iterable[str]) -> list[str]:
    """The prompts as a list, of a single one too; raises Refused, naming the prompt, for what is not text that can be
    read, and for what has no order."""
    if isinstance(prompts, bytes | Mapping | Set) or not isinstance(prompts, Iterable):
        raise Refused("not a prompt", got=type(prompts).__name__, expected="text, or a list of texts")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    for position, prompt in enumerate(prompts):
        where = f"prompt {position + 1} of {len(prompts)}"
        if not isinstance(prompt, str):
            raise Refused("a prompt is not text", where=where, got=type(prompt).__name__, expected="text")
        if "\0" in prompt:
            raise Refused("a prompt holds a NUL character", where=where, got=_shortened(prompt), fix="remove it")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise Refused("a prompt is not valid Unicode", where=where, got=_shortened(prompt)) from None
    return prompts


def load_text_encoder(
    model: str | Path,
    tokenizer: str | Path | None = None,
    *,
    max_tokens: int | None = None,
    trainable: bool = False,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> TextEncoder:
    """Loads a text encoder of transformers by folder or hub name.

    A folder holds both parts, or has them as `text_encoder/` and `tokenizer/` (a checkpoint, a pipeline folder);
    `tokenizer` names another place for the tokenizer. Frozen and in eval mode unless `trainable`. Raises Refused when a
    part is missing or not readable.
    """
    import transformers

    model_at, tokenizer_at = _parts(model, tokenizer)
    with quiet():
        try:
            config = transformers.AutoConfig.from_pretrained(model_at)
            class_name = CLASSES.get(config.model_type, OTHER)[0]
            weights = getattr(transformers, class_name).from_pretrained(model_at, dtype=dtype)
            words = transformers.AutoTokenizer.from_pretrained(tokenizer_at)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise Refused(
                "the text encoder cannot be loaded",
                where=model,
                got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                expected="a transformers text model with its tokenizer (CLIP, T5, UMT5, ...)",
            ) from error
    encoder = TextEncoder(weights, words, max_tokens=max_tokens).to(device)
    return encoder.requires_grad_(trainable).train(trainable)


def _parts(model: str | Path, tokenizer: str | Path | None) -> tuple[str, str]:
    """Where the model and the tokenizer lie: folders on this machine, or a hub name."""
    folder = Path(model)
    if not folder.is_dir():
        if isinstance(model, Path) or folder.is_absolute() or str(model).startswith("."):
            raise Refused("no such folder", where=model, expected="a text encoder's folder or its hub name")
        return str(model), str(tokenizer or model)
    model_at = folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder
    if tokenizer is None:
        tokenizer = folder / "tokenizer" if (folder / "tokenizer").is_dir() else model_at
    return str(model_at), str(tokenizer)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers from drawing its own progress bars."""
    from transformers.utils import logging as theirs

    shown = theirs.is_progress_bar_enabled()
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            theirs.enable_progress_bar()


def _unknown(tokenizer: Any, prompts: list[str], encoded: Any) -> list[str]:
    unknown_id = tokenizer.unk_token_id
    # CLIP's vocabulary is made of bytes: nothing is unknown, and its "unknown" mark is the end mark.
    if unknown_id is None or unknown_id in (tokenizer.eos_token_id, tokenizer.pad_token_id) or not encoded.encodings:
        return []
    found: dict[str, None] = {}
    for prompt, encoding in zip(prompts, encoded.encodings, strict=True):
        for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            if token == unknown_id and prompt[start:end].strip():
                found[prompt[start:end].strip().lower()] = None
    return list(found)


def _vocabulary(tokenizer: Any) -> str:
    if not getattr(tokenizer, "is_fast", False):
        return json.dumps(sorted(tokenizer.get_vocab().items()))
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps({key: value for key, value in whole.items() if key not in ("truncation", "padding")})


def _listed(words: list[str], most: int = 10) -> str:
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(repr(_shortened(word)) for word in words[:most]) + more


def _shortened(text: str, most: int = 60) -> str:
    text = text if len(text) <= most else text[: most - 3] + "..."
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
