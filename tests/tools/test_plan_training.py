"""`mmdit plan RECIPE` and `mmdit bench`: one verb, several kinds."""

import json
import re
from pathlib import Path

import pytest
from commands import exit_code

WORDS = ("debug", "--latent", "4x3x8x6", "--labels", "5", "--gpu", "h200")


def test_a_plan_is_printed_and_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("plan", *WORDS) == 0
    said = capsys.readouterr().out
    assert "parameters trained" in said and "fits H200" in said and "not known: no peak of H200 in float32" in said
    assert "no store at stores/debug" in said
    assert exit_code("plan", *WORDS, "precision=bfloat16", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["share_is"] == "assumed" and plan["seconds"] > 0 and plan["memory"]["peak"] > 0


def test_without_store_or_shapes_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("plan", "debug") == 2
    assert re.fullmatch(r"mmdit: no store to plan for, in stores/debug,.*--latent.*\n", capsys.readouterr().err)
    assert exit_code("plan", "debug", "--latent", "4x3") == 2
    assert "--latent does not fit" in capsys.readouterr().err


def test_the_words_say_which_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, option in ((["debug"], "--gpus"), (["my.yaml"], "--gpus"), ([tmp_path], "--token-budget"),
                          (["--recipe", "clips.yaml", tmp_path], "--token-budget")):  # fmt: skip
        assert exit_code("plan", *words, "--help") == (0 if "clips.yaml" not in words else 2)
        shown = capsys.readouterr()
        assert option in shown.out or "clips.yaml" in shown.err
    assert exit_code("bench", "train", "--help") == 0 and exit_code("bench", "sing") == 2
    assert "no such benchmark, got 'sing'" in capsys.readouterr().err
