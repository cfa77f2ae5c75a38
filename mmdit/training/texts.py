"""What the captions of a run are to its network: computed once when the run begins, or read from the store."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmdit.conditioning import TextEncoder
from mmdit.errors import Refused
from mmdit.latents.texts import FOLDER, META, TextStore
from mmdit.training.sources import Sources

# Of a batch of captions, as the trainee takes them: (ids, mask) for an encoder that is trained along; for a frozen one
# (pooled,), and (pooled, tokens, mask) where the network reads the tokens of the text.
Text = tuple[Tensor, ...]


class TextTable:
    """All captions of a split, computed beforehand.

    Args:
        parts: row n of each is caption number n.
    """

    def __init__(self, parts: Text) -> None:
        self.parts = parts

    @property
    def tokens(self) -> int:
        """Of each caption, padding included; 0 where there is the pooled text alone."""
        return self.parts[1].shape[1] if len(self.parts) > 1 else 0

    def rows(self, numbers: Sequence[int]) -> Text:
        """What stands for these captions, each part (caption, ...)."""
        chosen = torch.tensor(numbers)
        return tuple(part[chosen] for part in self.parts)


class StoredTexts:
    """The captions' embeddings as `mmdit encode --text-encoder` left them in the stores.

    Args:
        captions: by number; the empty prompt is number 0.
        tokens: whether the network reads the tokens of the text.
    """

    def __init__(self, stores: list[TextStore], captions: list[str], tokens: bool) -> None:
        self.stores, self.captions, self._with_tokens = stores, captions, tokens

    @property
    def tokens(self) -> int:
        """Of each caption, padding included; 0 where there is the pooled text alone."""
        return self.stores[0].meta["max_tokens"] if self._with_tokens else 0

    def rows(self, numbers: Sequence[int]) -> Text:
        """What stands for these captions, each part (caption, ...)."""
        found = [self._embedding(self.captions[number]) for number in numbers]
        return tuple(torch.stack(parts) for parts in zip(*found, strict=True))

    def _embedding(self, caption: str) -> Text:
        for store in self.stores[:-1]:
            try:
                return self._read(store, caption)
            except Refused:  # it is another source's caption
                continue
        return self._read(self.stores[-1], caption)

    def _read(self, store: TextStore, caption: str) -> Text:
        found = store.embedding(caption)
        if not self._with_tokens:
            return (found.pooled.float(),)
        assert found.tokens is not None and found.mask is not None
        return found.pooled.float(), found.tokens.float(), found.mask


Texts = TextTable | StoredTexts


def texts_of(encoder: TextEncoder, captions: list[str], sources: Sources, *, tokens: bool) -> Texts:
    """The captions of a split for the network: from the stores, where all of them hold this encoder's embeddings, else
    computed now.

    Args:
        encoder: in training mode exactly when it is trained along; then its token ids are what is kept.
        tokens: whether the network reads the tokens of the text.
    """
    if not encoder.training and (stored := _stored(encoder.fingerprint, sources, tokens)):
        return StoredTexts(stored, captions, tokens)
    return TextTable(_computed(encoder, captions, tokens))


def _stored(fingerprint: str, sources: Sources, tokens: bool) -> list[TextStore]:
    """One a source, or none."""
    found = []
    for store in sources.stores:
        folder = Path(str(store.place))
        if not (folder / FOLDER / fingerprint[:16] / META).is_file():
            return []
        found.append(TextStore(folder, fingerprint))
    return found if all(store.meta["tokens"] or not tokens for store in found) else []


@torch.no_grad()
def _computed(encoder: TextEncoder, captions: list[str], with_tokens: bool) -> Text:
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
