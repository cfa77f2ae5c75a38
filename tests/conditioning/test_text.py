"""Text encoders of transformers: small random CLIP, T5 and UMT5, saved and loaded as real ones are."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from mmdit.conditioning import TextEncoder, build_text_encoder, check_prompts, load_text_encoder
from mmdit.errors import Refused

PROMPTS = ["a red coat", "", "a blue dress seen from afar, turning", "a red coat"]


def save_clip(folder: Path) -> None:
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list(",<|>/")
    entries = letters + [f"{letter}</w>" for letter in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: position for position, entry in enumerate(entries)}
    transformers.CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=20,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)


def save_t5(
    folder: Path, model_class: Any = transformers.T5EncoderModel, config_class: Any = transformers.T5Config
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list(",<>/\N{LOWER ONE EIGHTH BLOCK}")
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -1.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=24
    ).save_pretrained(folder)
    config = config_class(
        vocab_size=len(pieces), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, dropout_rate=0.1
    )
    model_class(config).save_pretrained(folder)


def save_umt5(folder: Path) -> None:
    save_t5(folder, transformers.UMT5EncoderModel, transformers.UMT5Config)


@pytest.fixture(scope="module", params=[save_clip, save_t5, save_umt5])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    torch.manual_seed(0)
    request.param(folder)
    return folder


def test_a_saved_encoder_loads_and_reads(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = load_text_encoder(folder)
    features = encoder.encode(PROMPTS)
    assert encoder.dim == 32
    assert features.pooled.shape == (4, 32)
    assert features.tokens.shape == (4, encoder.max_tokens, 32)
    assert features.mask.shape == (4, encoder.max_tokens)
    assert features.mask.dtype == torch.bool
    assert torch.equal(features.pooled[0], features.pooled[3])
    assert not torch.allclose(features.pooled[0], features.pooled[1])
    assert not torch.allclose(features.pooled[0], features.pooled[2], atol=1e-3)
    assert "%" not in capfd.readouterr().err  # no progress bars


def test_the_pooled_output_is_the_one_of_its_kind(folder: Path) -> None:
    encoder = load_text_encoder(folder)
    ids, mask = encoder.tokenize(PROMPTS)
    whole = encoder.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    for row, pooled in enumerate(encoder(ids, mask).pooled):
        length = int(mask[row].sum())
        wanted = whole[row, length - 1] if "clip" in folder.name else whole[row, :length].mean(0)
        torch.testing.assert_close(pooled, wanted)


def test_features_do_not_depend_on_neighbours_or_padding(folder: Path) -> None:
    encoder = load_text_encoder(folder)
    ids, mask = encoder.tokenize(PROMPTS)
    together = encoder(ids, mask)
    longest = int(mask.sum(1).max())
    alone = encoder.encode(PROMPTS[:1])
    trimmed = encoder(ids[:, :longest], mask[:, :longest])
    torch.testing.assert_close(alone.pooled[0], together.pooled[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(trimmed.pooled, together.pooled, atol=1e-5, rtol=0)
    real = trimmed.mask
    torch.testing.assert_close(trimmed.tokens[real], together.tokens[:, :longest][real], atol=1e-5, rtol=0)


def test_frozen_by_default_trainable_when_asked(folder: Path) -> None:
    frozen = load_text_encoder(folder)
    assert not frozen.training
    assert not any(weight.requires_grad for weight in frozen.parameters())
    assert not frozen.encode(PROMPTS).pooled.requires_grad
    trained = load_text_encoder(folder, trainable=True)
    assert trained.training
    assert trained.encode(PROMPTS).pooled.requires_grad


def test_saved_and_loaded_again_it_is_bit_equal(folder: Path, tmp_path: Path) -> None:
    encoder = load_text_encoder(folder, max_tokens=11)
    encoder.save(tmp_path / "fresh")
    encoder.encode(["a coat " * 30])  # a tokenizer keeps what it was told last; nothing of that may be saved
    encoder.save(tmp_path)
    again = load_text_encoder(tmp_path)
    assert again.max_tokens == 11
    assert again.fingerprint == encoder.fingerprint
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    for before, after in zip(encoder.tokenize(PROMPTS), again.tokenize(PROMPTS), strict=True):
        assert torch.equal(before, after)
    tokenizer = (tmp_path / "tokenizer" / "tokenizer.json").read_bytes()
    again.save(tmp_path / "twice")
    for other in ("fresh", "twice"):
        assert (tmp_path / other / "tokenizer" / "tokenizer.json").read_bytes() == tokenizer
    parts = load_text_encoder(tmp_path / "text_encoder", tmp_path / "tokenizer")
    assert parts.fingerprint == encoder.fingerprint


def test_the_fingerprint_tells_weights_words_and_limits_apart(folder: Path) -> None:
    first = load_text_encoder(folder, max_tokens=11)
    assert load_text_encoder(folder, max_tokens=12).fingerprint != first.fingerprint
    changed = load_text_encoder(folder, max_tokens=11)
    with torch.no_grad():
        list(changed.parameters())[-1].view(-1)[0] += 1e-3
    assert changed.fingerprint != first.fingerprint


def test_a_prompt_cannot_smuggle_in_an_end_mark(folder: Path) -> None:
    encoder = load_text_encoder(folder)
    end = encoder.tokenizer.eos_token
    ids, mask = encoder.tokenize([f"a {end} b", "a b"])
    assert (ids[0][mask[0]] == encoder.tokenizer.eos_token_id).sum() == 1


def test_the_token_limit_comes_from_tokenizer_or_model(folder: Path) -> None:
    assert load_text_encoder(folder).max_tokens == (20 if "clip" in folder.name else 24)
    with pytest.raises(Refused, match="limit on tokens"):
        load_text_encoder(folder, max_tokens=2)


def test_more_tokens_than_clip_has_places_for_are_refused(tmp_path: Path) -> None:
    save_clip(tmp_path)
    with pytest.raises(Refused, match="got 21, expected 3 to 20"):
        load_text_encoder(tmp_path, max_tokens=21)


def test_a_trained_encoder_round_trips(tmp_path: Path) -> None:
    encoder = build_text_encoder(["a red coat"], width=32, max_tokens=9)
    encoder.save(tmp_path)
    again = load_text_encoder(tmp_path, trainable=True)
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again.encode(["red"]).pooled, encoder.encode(["red"]).pooled)


def test_words_unknown_to_a_t5_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_t5(tmp_path)
    with caplog.at_level(logging.WARNING, "mmdit"):
        load_text_encoder(tmp_path).tokenize(["a \N{COAT}"])
    assert "\N{COAT}" in caplog.text


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (["a", "b\0c"], r"NUL character, in prompt 2 of 2, got b\\0c"),
        (["a", None], "prompt 2 of 2, got NoneType"),
        ([b"a"], "got bytes"),
        (["\ud800"], "not valid Unicode"),
    ],
)
def test_what_is_not_text_is_refused(prompts: list[Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        check_prompts(prompts)
    with pytest.raises(Refused, match=said):
        build_text_encoder(["a"], width=32, max_tokens=4).tokenize(prompts)


def test_missing_and_broken_folders_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such folder"):
        load_text_encoder(tmp_path / "none")
    with pytest.raises(Refused, match="cannot be loaded"):
        load_text_encoder(tmp_path)
    save_clip(tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    with pytest.raises(Refused, match="cannot be loaded") as refusal:
        load_text_encoder(tmp_path / "clip")
    assert "\n" not in str(refusal.value)


def test_a_text_encoder_can_be_made_of_parts() -> None:
    encoder = build_text_encoder(["a red coat"], width=32, max_tokens=9)
    again = TextEncoder(encoder.model, encoder.tokenizer)
    assert again.max_tokens == 9
    assert again.fingerprint == encoder.fingerprint
