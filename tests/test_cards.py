"""The cards of docs/reproduction.md: every recipe says all of it, and what it would take is what the planner says."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from commands import exit_code

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def cards() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cards", ROOT / "docs/cards.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_header_is_whole(cards: ModuleType, path: Path) -> None:
    about, fields = cards.read_header(path)
    assert about and [name for name in cards.FIELDS if not fields.get(name)] == []
    assert list(fields) == [name for name in (*cards.FIELDS, "Differs") if name in fields]
    assert (fields["Time"] == "not run") == (fields["Measured"] == "not run")
    assert f"configs/{path.name}" in fields["Command"]
    assert fields["Plan"].startswith((f"mmdit plan {path.stem} ", "none: "))


def test_a_card_says_what_the_planner_says(cards: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    card = cards.make_card(ROOT / "configs/dit_s2_256.yaml")
    parameters, macs, batch, steps = card.size
    assert parameters == pytest.approx(32.96, rel=0.01) and (batch, steps) == (256, "400,000")
    assert macs == pytest.approx(6.06, rel=0.01)
    assert card.hours == pytest.approx(400_000 * 256 * macs * 1e9 * 6 / (0.2 * 989.4e12) / 3600)
    assert exit_code(*card.fields["Plan"].split()[1:], "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    assert (card.hours * 3600, card.share) == (plan["seconds"], plan["share_of_peak"])
    text = "\n".join([*cards.summary([card]), *cards.describe(card)])
    assert "planned: 5.2 hours on one H200 at an assumed 20 % of its peak" in text
    assert "| 32.87 | 6.056 | 256 | 400,000 | FID-50K 68.4 after 400 000 steps without guidance | not run |" in text


def test_what_is_no_diffusion_transformer_is_counted_too(cards: ModuleType) -> None:
    codec, probe = (cards.make_card(ROOT / f"configs/{name}_fashion.yaml") for name in ("codec", "probe"))
    assert codec.size[0] == 2.408397 and codec.size[2:] == (4, "13,000 + 4,000")  # as their README.md have it
    assert probe.size[0] == 0.495229 and codec.hours is probe.hours is None
    assert codec.size[1] > probe.size[1] > 0.1


@pytest.mark.parametrize(
    ("wrong", "right", "message"),
    [("# Published:.*\n", "", "lacks Published"), ("--gpu h200 ", "", "neither what it took nor")],
)
def test_what_is_missing_ends_the_build(
    cards: ModuleType, tmp_path: Path, wrong: str, right: str, message: str
) -> None:
    text = (ROOT / "configs/dit_s2_256.yaml").read_text("utf-8")
    (tmp_path / "mine.yaml").write_text(re.sub(wrong, right, text))
    with pytest.raises(LookupError, match=message):
        cards.make_card(tmp_path / "mine.yaml")
