"""The embedded text encoder: its vocabulary, what it cannot read, and that it can be trained."""

import logging
from typing import Any

import pytest
import torch

from mmdit.conditioning import TextEncoder, build_text_encoder
from mmdit.errors import Refused

CAPTIONS = ["a striped red coat, seen turning round", "A blue t-shirt and trousers", "a plain green dress"]


def build(**options: Any) -> TextEncoder:
    return build_text_encoder(CAPTIONS, **{"width": 32, "max_tokens": 12, "seed": 3, **options})


def words(encoder: TextEncoder, prompt: str) -> list[str]:
    ids, mask = encoder.tokenize([prompt])
    return encoder.tokenizer.convert_ids_to_tokens(ids[0][mask[0]].tolist())


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("a red coat", ["a", "red", "coat"]),
        ("A RED Coat,dress", ["a", "red", "coat", ",", "dress"]),
        ("a red coat!!! (green)", ["a", "red", "coat", "green"]),
        ("t-shirt", ["t", "-", "shirt"]),
        ("", []),
        (" \n\t ", []),
        ("a zebra", ["a", "[UNK]"]),
        ("red [EOS] coat", ["red", "coat"]),
        ("\N{FULLWIDTH LATIN SMALL LETTER A} red", ["a", "red"]),
    ],
)
def test_words_in_lower_case_and_punctuation_apart(prompt: str, wanted: Any) -> None:
    assert words(build(), prompt) == ["[BOS]", *wanted, "[EOS]"]


def test_unknown_words_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = build()
    prompts = ["a Zebra dress", "red", "zebra \N{ZEBRA FACE} coat?"]
    with caplog.at_level(logging.WARNING, "mmdit"):
        encoder.tokenize(prompts)
        encoder.tokenize(prompts)
    assert [record.message for record in caplog.records] == [
        "words that the text encoder does not know, and cannot read: 'zebra', '\N{ZEBRA FACE}'"
    ]


def test_cut_prompts_keep_their_end_mark_and_are_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = build(max_tokens=5)
    with caplog.at_level(logging.WARNING, "mmdit"):
        ids, mask = encoder.tokenize(["red " * 10, "a", "a red coat", "red " * 4])
        encoder.tokenize(["red " * 50_000])
    end = encoder.tokenizer.eos_token_id
    assert [row[int(row_mask.sum()) - 1].item() for row, row_mask in zip(ids, mask, strict=True)] == [end] * 4
    assert mask.sum(1).tolist() == [5, 3, 5, 5]
    (said,) = [record.message for record in caplog.records]
    assert said.startswith("2 of 4 prompts are longer than 5 tokens (the longest has 12)")


def test_the_same_seed_gives_the_same_encoder_and_leaves_torch_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, two, other = build(), build(), build(seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert one.fingerprint == two.fingerprint != other.fingerprint
    assert build_text_encoder(CAPTIONS[:2], width=32, max_tokens=12, seed=3).fingerprint != one.fingerprint


def test_the_vocabulary_does_not_depend_on_the_order_of_the_captions() -> None:
    turned = build_text_encoder(CAPTIONS[::-1], width=32, max_tokens=12, seed=3)
    assert turned.fingerprint == build().fingerprint


def test_the_most_frequent_words_are_kept() -> None:
    encoder = build_text_encoder(["red red blue", "red blue green"], width=32, max_tokens=8, max_words=2)
    assert words(encoder, "red blue green") == ["[BOS]", "red", "blue", "[UNK]", "[EOS]"]


def test_gradients_reach_every_weight_but_none_the_unknown_word() -> None:
    encoder = build()
    features = encoder(*encoder.tokenize(CAPTIONS))
    features.pooled.square().sum().backward()
    assert all(weight.grad is not None for weight in encoder.parameters())
    table = encoder.model.get_input_embeddings().weight
    unknown = encoder.tokenizer.unk_token_id
    assert table.grad[unknown].eq(0).all()
    assert table[unknown].eq(0).all()
    assert table.grad[encoder.tokenizer.eos_token_id].ne(0).any()


def test_it_learns_to_tell_words_apart() -> None:
    encoder = build(depth=1)
    ids, mask = encoder.tokenize(["a red coat", "a green dress"])
    optimizer = torch.optim.Adam(encoder.parameters(), 1e-2)
    target = torch.tensor([[1.0], [-1.0]])
    for _ in range(40):
        loss = (encoder(ids, mask).pooled[:, :1] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


@pytest.mark.parametrize("options", [{"width": 30, "heads": 4}, {"heads": 0}, {"max_tokens": 2}])
def test_impossible_sizes_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(Refused):
        build(**options)


def test_without_any_caption_only_the_empty_prompt_is_known() -> None:
    encoder = build_text_encoder([], width=32, max_tokens=4)
    assert encoder.encode([""]).pooled.shape == (1, 32)
