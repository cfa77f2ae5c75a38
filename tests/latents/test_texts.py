"""Text embeddings in a store: what is kept, resuming, another encoder."""

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from kills import killed_at
from stores import write_store

from mmdit import files
from mmdit.conditioning import build_text_encoder
from mmdit.errors import Refused, Stopped
from mmdit.latents.texts import TextStore, encode_texts

CAPTIONS = [f"clip {number}" for number in range(6)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store")


class Counted:
    """An encoder that keeps what it was asked for."""

    def __init__(self, seed: int = 0) -> None:
        self.encoder = build_text_encoder(CAPTIONS, width=16, depth=1, heads=2, max_tokens=8, seed=seed).eval()
        tiny.randomize(self.encoder.model, seed)
        self.asked: list[str] = []
        self.fingerprint, self.dim = self.encoder.fingerprint, self.encoder.dim
        self.max_tokens = self.encoder.max_tokens

    def encode(self, prompts: Sequence[str]) -> Any:
        self.asked += prompts
        return self.encoder.encode(prompts)


@pytest.mark.filterwarnings("ignore")
def test_each_caption_and_the_empty_prompt_once(folder: Path) -> None:
    encoder = Counted()
    told: list[tuple[int, int]] = []
    made = encode_texts(folder, encoder, tokens=True, shard_size=3, batch_size=2, progress=lambda *n: told.append(n))
    assert made == folder / "texts" / encoder.fingerprint[:16]
    assert sorted(encoder.asked) == ["", *CAPTIONS] and told == [
        (3, 7),
        (6, 7),
        (7, 7),
    ]
    texts = TextStore(folder, encoder.fingerprint)
    assert len(texts) == 7
    with torch.no_grad():
        for caption in ["", *CAPTIONS]:
            wanted, got = encoder.encoder.encode([caption]), texts.embedding(caption)
            assert got.tokens is not None and got.mask is not None
            assert torch.allclose(got.pooled, wanted.pooled[0], atol=1e-5)
            assert torch.allclose(got.tokens, wanted.tokens[0], atol=1e-5) and torch.equal(got.mask, wanted.mask[0])
    assert torch.equal(texts.null.pooled, texts.embedding("").pooled)
    assert len({tuple(texts.embedding(caption).pooled.tolist()) for caption in ["", *CAPTIONS]}) == 7
    assert torch.equal(pickle.loads(pickle.dumps(texts)).null.pooled, texts.null.pooled)
    with pytest.raises(Refused, match=r"caption without an embedding.*'a hat'"):
        texts.embedding("a hat")


def test_pooled_alone_and_nothing_twice(folder: Path) -> None:
    encode_texts(folder, Counted())
    before = {path: path.stat().st_mtime_ns for path in (folder / "texts").rglob("*") if path.name != ".lock"}
    again = Counted()
    encode_texts(folder, again)
    assert again.asked == [] and before == {path: path.stat().st_mtime_ns for path in before}
    embedding = TextStore(folder, again.fingerprint).embedding("clip 1")
    assert embedding.pooled.shape == (again.dim,) and embedding.tokens is None and embedding.mask is None


def test_text_of_another_encoder_is_refused_with_both_fingerprints(folder: Path) -> None:
    first, second = Counted(0), Counted(1)
    with pytest.raises(Refused, match="no text embeddings of this encoder"):
        TextStore(folder, first.fingerprint)
    encode_texts(folder, first)
    with pytest.raises(Refused) as error:
        TextStore(folder, second.fingerprint)
    words = (
        "of another encoder",
        f"got fingerprint {first.fingerprint[:16]}",
        f"fingerprint {second.fingerprint[:16]}",
    )
    assert all(word in str(error.value) for word in words)
    with pytest.raises(Refused, match=r"another fingerprint, .*got fingerprint \w+, expected fingerprint \w+"):
        TextStore(folder, first.fingerprint[:16] + second.fingerprint[16:])
    encode_texts(folder, second)  # beside the other
    assert not torch.equal(*(TextStore(folder, one.fingerprint).null.pooled for one in (first, second)))


def test_other_settings_and_newer_formats_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Counted()
    encode_texts(folder, encoder)
    with pytest.raises(Refused, match=r"another tokens.*got tokens False, expected tokens True"):
        encode_texts(folder, encoder, tokens=True)
    path = folder / "texts" / encoder.fingerprint[:16] / "texts.json"
    files.write_json(path, {"format": 2, "fingerprint": encoder.fingerprint})
    with pytest.raises(Refused, match=r"newer mmdit.*text format 2, expected at most 1"):
        TextStore(folder, encoder.fingerprint)


def test_what_is_not_finite_is_refused_with_its_text(folder: Path) -> None:
    encoder = Counted()
    with torch.no_grad():
        next(encoder.encoder.model.parameters()).fill_(float("nan"))
    with pytest.raises(Refused, match=r"text embedding that is not finite.*'"):
        encode_texts(folder, encoder)


def test_killed_at_every_write(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def contents(store: Path) -> dict[str, bytes]:
        found = [path for path in (store / "texts").rglob("*") if path.is_file() and path.name != ".lock"]
        return {path.relative_to(store).as_posix(): path.read_bytes() for path in found}

    encoder = Counted()
    shutil.copytree(folder, tmp_path / "whole")
    encode_texts(tmp_path / "whole", encoder, shard_size=4)
    point, killed = 0, True
    while killed:
        point += 1
        store = tmp_path / str(point)
        shutil.copytree(folder, store)
        killed = killed_at(monkeypatch, f"kill@#{point}", lambda: encode_texts(store, encoder, shard_size=4))  # noqa: B023
        encode_texts(store, encoder, shard_size=4)
        assert contents(store) == contents(tmp_path / "whole"), point
    assert point - 1 == 3 * (2 * 2 + 2)  # two files a shard, the index, texts.json; three stages each


def test_a_full_disk_stops_with_what_is_done_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Counted()
    monkeypatch.setenv("MMDIT_FAULT", "full@00001.safetensors:begin")
    with pytest.raises(Stopped, match="embeddings cannot be written.*No space"):
        encode_texts(folder, encoder, shard_size=4)
    monkeypatch.delenv("MMDIT_FAULT")
    again = Counted()
    encode_texts(folder, again, shard_size=4)
    assert len(again.asked) == 3


def test_a_damaged_shard_is_named(folder: Path) -> None:
    encoder = Counted()
    made = encode_texts(folder, encoder)
    (made / "shards" / "00000.safetensors").write_bytes(b"short")
    with pytest.raises(Refused, match=r"damaged text embeddings.*00000\.safetensors"):
        TextStore(folder, encoder.fingerprint).embedding("clip 1")
