"""`mmdit study`: runs that are done are not done again, and the results are whole."""

import json
from importlib.resources import files
from pathlib import Path

import commands
import pytest

from mmdit.config import dump_config, load_config
from mmdit.errors import Refused, Stopped
from mmdit.evaluation.protocol import load_protocol
from mmdit.tools import study
from mmdit.training.config import RunConfig
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
            recipe = load_config(RunConfig, words[0], words[1:-2])
            (out / "checkpoints" / f"step-{recipe.steps:07}").mkdir(parents=True, exist_ok=True)
            (out / "config.yaml").write_text(dump_config(recipe))
            (out / "metrics.jsonl").write_text(json.dumps({"step": 1, "val_loss": 1 / depth, "seconds": 1.0}) + "\n")
        else:
            assert words[words.index("--store") + 1]
            name = words[words.index("--protocol") + 1]
            step = max(int(path.name[5:]) for path in (Path(words[0]) / "checkpoints").iterdir())
            out.write_text(json.dumps({
                "protocol": {"name": name, **load_protocol(name).model_dump(mode="json")}, "model": {"step": step},
                "figures": {"distances": {"probe": {"frechet": 2.0}}},
            }))  # fmt: skip

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
    assert commands.exit_code("study", *asked) == 0
    assert len(calls) == 6
    result = json.loads((tmp_path / "out" / "depths" / "study.json").read_text())
    assert [row["mean"]["held-out loss"] for row in result["rows"]] == pytest.approx([1, 1 / 2, 1 / 3])
    assert result["rank_correlations"]["held-out loss"] == pytest.approx(-1)
    assert (tmp_path / "out" / "depths" / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "rank correlation of multiply-accumulates and held-out loss: -1.000" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["steps=9", "model.hidden_size=64", "protocol"])
def test_what_was_asked_for_otherwise_is_done_again(
    calls: list[tuple[str, list[str]]], asked: list[str], tmp_path: Path, change: str
) -> None:
    """`mmdit train` then goes on, or refuses the run that there is."""
    assert commands.exit_code("study", *asked, "--only", "d1") == 0
    if change == "protocol":
        told = json.loads((tmp_path / "depths.yaml").read_text())
        (tmp_path / "depths.yaml").write_text(json.dumps({**told, "protocol": "fvd-16f-2048"}))
    else:
        asked.insert(2, change)
    calls.clear()
    assert commands.exit_code("study", *asked, "--only", "d1") == 0
    assert [verb for verb, _ in calls] == ["train", "evaluate"]


def test_the_store_may_be_named_by_the_recipe(
    calls: list[tuple[str, list[str]]], asked: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("base: debug\ndata: {store: named}\n")
    told = json.loads((tmp_path / "depths.yaml").read_text())
    (tmp_path / "depths.yaml").write_text(json.dumps({**told, "recipe": str(tmp_path / "mine.yaml")}))
    asked.remove("data.store=somewhere")
    assert commands.exit_code("study", *asked, "--only", "d1") == 0
    assert calls[1][1][1:3] == ["--store", "named"]


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
