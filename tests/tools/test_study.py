"""`mmdit study`: runs that are done are not done again, and the results are whole."""

import json
from importlib.resources import files
from pathlib import Path

import commands
import pytest

from mmdit.config import load_config
from mmdit.errors import Refused, Stopped
from mmdit.tools import study
from mmdit.training.study import Study

SHIPPED = sorted(path.name for path in (Path(str(files("mmdit.configs"))) / "studies").glob("*.yaml"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Runs and evaluations that are made up: the held-out loss of a point falls with its depth."""
    made: list[tuple[str, list[str]]] = []

    def call(verb: str, words: list[str]) -> None:
        made.append((verb, words))
        out = Path(words[words.index("--out") + 1])
        if verb == "train":
            depth = next(int(word[-1]) for word in words if word.startswith("model.depth="))
            out.mkdir(parents=True)
            (out / "metrics.jsonl").write_text(json.dumps({"step": 1, "val_loss": 1 / depth, "seconds": 1.0}) + "\n")
        else:
            assert words[words.index("--store") + 1]
            out.write_text(json.dumps({"figures": {"distances": {"probe": {"frechet": 2.0}}}}))

    monkeypatch.setattr(study, "_call", call)
    return made


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("mmdit.training.study._latent_shape", lambda config: (4, 3, 8, 6))
    points = {f"d{depth}": [f"model.depth={depth}"] for depth in (1, 2, 3)}
    (tmp_path / "depths.yaml").write_text(json.dumps({"recipe": "debug", "points": points, "plot": True}))
    return [str(tmp_path / "depths.yaml"), "data.store=somewhere", "--out", str(tmp_path / "out")]


def test_a_study_trains_measures_and_goes_on(
    calls: list[tuple[str, list[str]]], asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.exit_code("study", *asked, "--only", "d1") == 0
    assert [verb for verb, _ in calls] == ["train", "evaluate"]
    assert commands.exit_code("study", *asked) == 0
    assert [verb for verb, _ in calls] == ["train", "evaluate"] * 3  # d1 was there
    result = json.loads((tmp_path / "out" / "depths" / "study.json").read_text())
    assert [row["mean"]["held-out loss"] for row in result["rows"]] == pytest.approx([1, 1 / 2, 1 / 3])
    assert result["rank_correlations"]["held-out loss"] == pytest.approx(-1)
    assert (tmp_path / "out" / "depths" / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "rank correlation of multiply-accumulates and held-out loss: -1.000" in capsys.readouterr().out


def test_a_plan_trains_nothing_and_what_is_unknown_is_refused(
    calls: list[tuple[str, list[str]]], asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.exit_code("study", *asked, "--plan") == 0
    assert "d3-seed0" in capsys.readouterr().out and not calls
    assert commands.exit_code("study", *asked, "--only", "d9") == 2
    assert commands.exit_code("study", "nothing", "data.store=x") == 2
    assert "scaling" in capsys.readouterr().err


def test_a_run_that_fails_ends_the_study(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match="ended with 2"):
        study._call("train", ["no-such-recipe"])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_studies_are_studies(name: str) -> None:
    found = load_config(Study, study._find(name.removesuffix(".yaml")))
    assert len(found.points) >= 2
    with pytest.raises(Refused):
        study._find("no such study")
