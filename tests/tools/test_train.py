"""`mmdit train` says what a recipe is, without training."""

import json

import pytest

from mmdit.errors import Refused
from mmdit.tools.train import main


def test_show_prints_the_recipe_over_its_base(capsys: pytest.CaptureFixture[str]) -> None:
    main("dit_b2_256", ["steps=7"], show=True)
    shown = capsys.readouterr().out
    assert "steps: 7\n" in shown
    assert "preset: DiT-B/2" in shown
    assert "store: stores/imagenet256" in shown
    assert "base:" not in shown


def test_schema_is_json_and_needs_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    main(None, schema=True)
    assert "diffusion" in json.loads(capsys.readouterr().out)["properties"]


def test_without_a_recipe_it_is_refused() -> None:
    with pytest.raises(Refused, match="no recipe"):
        main(None)
