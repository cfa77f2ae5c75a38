"""Every key of a recipe has a class that says whether a run may go on with another value; other data are refused."""

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
from encoding import encode
from pydantic import BaseModel
from runs import change_state, sign

from mmdit.clips.made import make_clips
from mmdit.conditioning import build_text_encoder
from mmdit.errors import Refused
from mmdit.training.checkpoint import find_checkpoint, read_state
from mmdit.training.config import RunConfig
from mmdit.training.loop import train
from mmdit.training.resume_rules import IGNORED, MAY_CHANGE, MUST_MATCH, rule_of


def tables(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [table for part in get_args(annotation) for table in tables(part)]


def keys(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key; a table that may also be null, and a list of tables, counts itself too."""
    for name, field in kind.model_fields.items():
        found = tables(field.annotation)
        if field.annotation not in found:
            yield prefix + name
        for table in found:
            yield from keys(table, f"{prefix}{name}.")


def test_every_key_has_one_class() -> None:
    classes = (MUST_MATCH, MAY_CHANGE, IGNORED)
    found = {key: sum(key in named for named in classes) for key in map(rule_of, keys(RunConfig))}
    assert {key for key, count in found.items() if count != 1} == set(), "name these in mmdit/training/resume_rules.py"
    assert set().union(*classes) == found.keys()


CHANGED: dict[str, Any] = {
    "log_every": 2, "validate_every": 1, "validation_clips": 2, "checkpoint_every": 1, "keep_checkpoints": 3,
    "keep_best": True, "keep_every": 2, "stop_after_bad_steps": 3, "data__validation_split": "train",
    "model__attention_backend": "math", "data__micro_batch": 2, "compile": True, "ema_device": "cpu",
    "model__checkpointing": 1, "data__repeat": True, "data__workers": 1, "trackers": [],
    "samples__every": 2, "samples__prompts": ["a coat"], "samples__labels": [0], "samples__count": 1,
    "samples__steps": 1, "samples__guidance": 1.0,
    "sharding": "full", "keep_hours": 2.0,
}  # fmt: skip


def test_what_may_change_may_and_is_logged(
    recipe: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compile", lambda module: module)  # it takes a minute
    assert {key.replace("__", ".") for key in CHANGED} | {"samples"} == MAY_CHANGE
    train(recipe(steps=2, samples={}), tmp_path, sample=lambda run: lambda stop_wanted: {})
    with caplog.at_level(logging.WARNING):
        train(recipe(steps=2, samples=None), tmp_path)
    assert "samples=None, and was begun with" in caplog.text
    train(recipe(steps=2, samples={}), tmp_path)
    with caplog.at_level(logging.WARNING):
        train(recipe(steps=2, samples={}, **CHANGED), tmp_path)
    for key, value in CHANGED.items():
        assert f"{key.replace('__', '.')}={value}, and was begun with" in caplog.text


def test_a_store_that_moved_is_the_same_store(recipe: Any, store: Path, tmp_path: Path) -> None:
    train(recipe(steps=2), tmp_path / "run")
    shutil.copytree(store, tmp_path / "moved")
    train(recipe(steps=2, data__store=str(tmp_path / "moved")), tmp_path / "run")


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """The clips of `store`, one of them gone, four more there."""
    folder = tmp_path_factory.mktemp("larger")
    make_clips(folder / "clips", 40, seed=0, size=(32, 32), frames=3, fps=8)
    table = folder / "clips" / "captions.csv"
    lines = table.read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:1] + lines[2:]))
    (folder / "clips" / lines[1].split(",")[0].strip('"')).unlink()
    encode(
        folder / "clips", folder / "store", tiny.make_codec(), frames=3, size=(32, 32), dtype="float16", psnr_every=0
    )
    return folder / "store"


def test_other_clips_are_counted_and_refused_unless_accepted(
    recipe: Any, larger: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"conditions": {"labels": True}}
    train(recipe(steps=2, **changes), tmp_path)
    before = read_state(find_checkpoint(tmp_path))["rows"]
    other = recipe(steps=2, data__store=str(larger), **changes)
    with pytest.raises(Refused, match=r"got \d+ clips added, \d+ removed, \d+ with another .*--accept-data") as refused:
        train(other, tmp_path)
    words = str(refused.value).split()
    assert int(words[words.index("added,") - 2]) > 0
    with caplog.at_level(logging.WARNING):
        train(other, tmp_path, accept_data=True)
    assert "goes on with another data set" in caplog.text
    assert read_state(find_checkpoint(tmp_path))["rows"] == before  # nothing was trained, so nothing was saved


def test_other_label_names_are_refused_even_when_data_are_accepted(recipe: Any, store: Path, tmp_path: Path) -> None:
    train(recipe(steps=2), tmp_path)
    checkpoint = find_checkpoint(tmp_path)
    names = read_state(checkpoint)["label_names"]
    assert len(names) > 1
    change_state(checkpoint, label_names=names[1:])
    with pytest.raises(Refused, match="the label names is not what this run was begun with"):
        train(recipe(steps=2), tmp_path, accept_data=True)


def test_another_frozen_text_encoder_is_refused(recipe: Any, tmp_path: Path) -> None:
    place = tmp_path / "encoder"
    encoder = build_text_encoder(["a red coat"], width=16, depth=1, heads=2, max_tokens=8, seed=0)
    encoder.save(place)
    config = recipe(steps=2, conditions={"text": {"encoder": str(place)}})
    train(config, tmp_path / "run")
    state = read_state(find_checkpoint(tmp_path / "run"))
    assert state["text_encoder_fingerprint"] == encoder.fingerprint
    train(config, tmp_path / "run")
    shutil.rmtree(place)
    other = build_text_encoder(["a red coat"], width=16, depth=1, heads=2, max_tokens=8, seed=1)
    other.save(place)
    with pytest.raises(Refused, match="text_encoder_fingerprint of ") as refused:
        train(config, tmp_path / "run")
    assert other.fingerprint in str(refused.value) and encoder.fingerprint in str(refused.value)


def test_captions_with_other_words_are_refused_for_the_encoder_trained_along(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=2), tmp_path)
    checkpoint = find_checkpoint(tmp_path)
    vocabulary = checkpoint / "tokenizer" / "tokenizer.json"
    text = vocabulary.read_text()
    assert '"coat"' in text or '"red"' in text
    vocabulary.write_text(text.replace('"coat"', '"cape"').replace('"red"', '"rot"'))
    sign(checkpoint)
    with pytest.raises(Refused, match="the captions make another vocabulary"):
        train(recipe(steps=2), tmp_path, accept_data=True)


def test_a_run_may_go_on_for_longer_where_no_decay_ends_it(recipe: Any, tmp_path: Path) -> None:
    train(recipe(steps=2, optimizer__decay="constant"), tmp_path / "longer")
    train(recipe(steps=4, optimizer__decay="constant"), tmp_path / "longer")
    train(recipe(steps=4, optimizer__decay="constant"), tmp_path / "whole")
    ends = [(find_checkpoint(tmp_path / name) / "manifest.json").read_bytes() for name in ("longer", "whole")]
    assert ends[0] == ends[1]
    train(recipe(steps=2), tmp_path / "decays")
    with pytest.raises(Refused, match="got steps=4, expected steps=2"):
        train(recipe(steps=4), tmp_path / "decays")
