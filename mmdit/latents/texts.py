"""Text embeddings of a frozen encoder, kept in the store beside the latents.

texts/<first 16 digits of the encoder's fingerprint>/ in a store's folder:

    texts.json                format, fingerprint, dim, max_tokens, whether token embeddings are kept, dtype
    index.parquet             sha256 of a caption, shard, place in it; sorted by sha256
    shards/NNNNN.safetensors  "pooled" (text, dim); with token embeddings "tokens" (text, token, dim), "mask"
    shards/NNNNN.parquet      the sha256 of each text of that shard, in order

The empty prompt, which is the null condition, is always among them. texts.json is written last.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pyarrow
import pyarrow.parquet
import torch
from safetensors import safe_open
from torch import Tensor

from mmdit import files
from mmdit.errors import Refused, Stopped
from mmdit.latents.layout import INDEX, SHARDS, shard_paths
from mmdit.latents.request import DTYPES
from mmdit.latents.rows import Rows
from mmdit.latents.store import LatentStore
from mmdit.latents.tables import as_parquet

FORMAT, FOLDER, META = 1, "texts", "texts.json"
_KEYS = pyarrow.schema([("sha256", pyarrow.string())])
_INDEX = pyarrow.schema([("sha256", pyarrow.string()), ("shard", pyarrow.int32()), ("place", pyarrow.int32())])


class Features(Protocol):
    """As `mmdit.conditioning.TextFeatures`: pooled (b, d), tokens (b, n, d), mask (b, n)."""

    @property
    def pooled(self) -> Tensor: ...
    @property
    def tokens(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...


class Encoder(Protocol):
    """What is asked of a text encoder; `mmdit.conditioning.TextEncoder` is one."""

    @property
    def fingerprint(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    def encode(self, prompts: Sequence[str]) -> Features: ...


@dataclass(frozen=True)
class Embedding:
    """One text: `pooled` (d,), and where they are kept `tokens` (n, d) with `mask` (n,), True at real tokens."""

    pooled: Tensor
    tokens: Tensor | None
    mask: Tensor | None


def encode_texts(
    store_folder: Path, encoder: Encoder, *, tokens: bool = False, batch_size: int = 64, shard_size: int = 4096,
    dtype: str = "float32", progress: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Embeds each distinct caption of a whole store, and the empty prompt, once; returns the folder.

    A call that was ended goes on when it is made again; captions that came since are added.

    Args:
        encoder: a frozen one (`mmdit.conditioning.load_text_encoder`).
        tokens: keep the embedding of each token too.
        progress: told after each shard: texts done, texts in all.

    Raises:
        Refused: no whole store; embeddings of other settings are there; an embedding that is not finite.
        Stopped: the disk is full or cannot be written; what is done is kept.
    """
    captions = LatentStore.open(store_folder).column("caption").unique().drop_null().to_pylist()
    texts = {key_of(text): text for text in ["", *captions]}
    fingerprint = encoder.fingerprint
    meta = {"format": FORMAT, "fingerprint": fingerprint, "dim": encoder.dim, "max_tokens": encoder.max_tokens}
    meta |= {"tokens": tokens, "dtype": dtype}
    folder = Path(store_folder) / FOLDER / fingerprint[:16]
    try:
        with files.lock(folder):
            files.sweep(folder)
            files.sweep(folder / SHARDS)
            known = _known(folder, meta)
            left = [key for key in sorted(texts) if key not in known]
            for first in range(0, len(left), shard_size):
                keys = left[first : first + shard_size]
                number = max((shard for shard, _ in known.values()), default=-1) + 1
                tensors = _embed(encoder, [texts[key] for key in keys], batch_size, tokens, dtype)
                _write_shard(folder, number, keys, tensors, meta)
                known |= {key: (number, place) for place, key in enumerate(keys)}
                if progress is not None:
                    progress(len(texts) - len(left) + first + len(keys), len(texts))
            rows = [{"sha256": key, "shard": shard, "place": place} for key, (shard, place) in sorted(known.items())]
            index = as_parquet(pyarrow.Table.from_pylist(rows, schema=_INDEX))
            if not (folder / INDEX).is_file() or (folder / INDEX).read_bytes() != index:
                files.write_bytes(folder / INDEX, index)
            if not (folder / META).is_file():
                files.write_json(folder / META, meta)
    except OSError as error:
        raise Stopped(
            "the text embeddings cannot be written", where=error.filename or folder, got=error.strerror or error,
            fix="make room there and run the same command again: it goes on where it ended",
        ) from error  # fmt: skip
    return folder


class TextStore:
    """The text embeddings of one encoder, by caption; read memory-mapped. It may be handed to other processes.

    Args:
        fingerprint: of the encoder that the reader trains or generates with.

    Raises:
        Refused: there are none, or they are another encoder's.
    """

    def __init__(self, store_folder: str | Path, fingerprint: str) -> None:
        self.folder = Path(store_folder) / FOLDER / fingerprint[:16]
        path = self.folder / META
        if not path.is_file():
            others = sorted(other.parent.name for other in self.folder.parent.glob(f"*/{META}"))
            raise Refused(
                "no text embeddings of this encoder" if not others else "the text embeddings are of another encoder",
                where=self.folder.parent, got=f"fingerprint {', '.join(others) or 'none'}",
                expected=f"fingerprint {fingerprint[:16]}", fix="embed the captions with this encoder: `encode_texts`",
            )  # fmt: skip
        self.meta: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _check(self.meta, {"fingerprint": fingerprint}, path)
        self._index = Rows(lambda: str(self.folder / INDEX), str(self.folder / INDEX))
        self._files: dict[int, Any] = {}

    def __reduce__(self) -> Any:
        return TextStore, (self.folder.parents[1], self.meta["fingerprint"])

    def __len__(self) -> int:
        return len(self._index)

    def embedding(self, caption: str) -> Embedding:
        """What the encoder makes of a caption of the store. Views of the mapped file: do not write to them.

        Raises:
            Refused: no such caption is there.
        """
        key = key_of(caption)
        low, high = 0, len(self._index)
        while low < high:
            middle = (low + high) // 2
            part, place = self._index.part(middle)
            found = part["sha256"][place].as_py()
            if found == key:
                return self._read(part["shard"][place].as_py(), part["place"][place].as_py())
            low, high = (middle + 1, high) if found < key else (low, middle)
        raise Refused(
            "a caption without an embedding", where=self.folder, got=repr(caption[:60]),
            fix="embed the store's captions again: only what is new is done",
        )  # fmt: skip

    @cached_property
    def null(self) -> Embedding:
        """The null condition: the empty prompt's embedding."""
        return self.embedding("")

    def _read(self, shard: int, place: int) -> Embedding:
        path = shard_paths(self.folder, shard)[0]
        try:
            if shard not in self._files:
                self._files[shard] = safe_open(path, framework="pt")
            names = ("pooled", "tokens", "mask") if self.meta["tokens"] else ("pooled",)
            parts = [self._files[shard].get_tensor(name)[place] for name in names]
        except Exception as error:  # safetensors has errors of its own
            raise Refused(
                "damaged text embeddings", where=path, got=error, fix="remove the shard and embed the captions again"
            ) from None
        pooled, words, mask = (*parts, None, None)[:3]
        return Embedding(pooled, words, mask)


def key_of(caption: str) -> str:
    """What a caption is found by: the sha256 of its UTF-8 text."""
    return hashlib.sha256(caption.encode()).hexdigest()


@torch.no_grad()
def _embed(encoder: Encoder, texts: list[str], batch_size: int, tokens: bool, dtype: str) -> dict[str, Tensor]:
    names = ("pooled", "tokens", "mask") if tokens else ("pooled",)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}
    for first in range(0, len(texts), batch_size):
        batch = texts[first : first + batch_size]
        features = encoder.encode(batch)
        for name, values in parts.items():
            value = getattr(features, name).cpu()
            values.append(value if name == "mask" else value.to(DTYPES[dtype]))
            good = values[-1].isfinite().flatten(1).all(1)
            if not good.all():
                text = batch[int((~good).nonzero()[0])]
                raise Refused("a text embedding that is not finite", got=repr(text[:60]), expected=f"{dtype} numbers")
    return {name: torch.cat(values) for name, values in parts.items()}


def _write_shard(folder: Path, number: int, keys: list[str], tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    tensors_path, rows_path = shard_paths(folder, number)
    about = {"mmdit": json.dumps(meta, sort_keys=True)}
    files.write_safetensors(tensors_path, tensors, about)
    table = pyarrow.Table.from_pylist([{"sha256": key} for key in keys], schema=_KEYS)
    files.write_bytes(rows_path, as_parquet(table.replace_schema_metadata(about)))


def _known(folder: Path, meta: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The texts of the whole shards there: shard and place by key. Parts of an ended call are removed."""
    known: dict[str, tuple[int, int]] = {}
    for rows_path in sorted((folder / SHARDS).glob("[0-9]*.parquet")):
        table = pyarrow.parquet.read_table(rows_path)
        _check(json.loads(table.schema.metadata[b"mmdit"]), meta, rows_path)
        if rows_path.with_suffix(".safetensors").is_file():
            keys = table["sha256"].to_pylist()
            known |= {key: (int(rows_path.stem), place) for place, key in enumerate(keys)}
        else:
            rows_path.unlink()
    for path in (folder / SHARDS).glob("[0-9]*.safetensors"):
        if not path.with_suffix(".parquet").is_file():
            path.unlink()
    return known


def _check(got: dict[str, Any], expected: dict[str, Any], where: Path) -> None:
    if got["format"] > FORMAT:
        raise Refused(
            "written by a newer mmdit", where=where, got=f"text format {got['format']}", expected=f"at most {FORMAT}",
            fix="update mmdit",
        )  # fmt: skip
    for name, value in expected.items():
        if got.get(name) != value:
            raise Refused(
                f"the text embeddings were made with another {name}", where=where, got=f"{name} {got.get(name)}",
                expected=f"{name} {value}", fix="use the same, or remove that folder to make them anew",
            )  # fmt: skip
