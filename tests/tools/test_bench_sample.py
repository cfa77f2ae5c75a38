"""`mmdit bench sample` prints its table and its JSON, and calibrates once."""

import json
from pathlib import Path

import commands
import pytest
import tiny

from mmdit.pipelines import comparison
from mmdit.tools.bench_sample import ATTRIBUTES

FEW = ["bench", "sample", "--prompts", "2", "--steps", "4", "--reference-steps", "6", "--runs", "1", "--floor", "3"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    all_ways = comparison.ways
    monkeypatch.setattr(comparison, "ways", lambda *given: [way for way in all_ways(*given) if not way.compiled])
    tiny.write_run(tmp_path / "run")
    return tmp_path / "run"


def test_the_table_and_the_figures_tell_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = run / "broadcast.json"
    assert commands.exit_code(*FEW, str(run), "--broadcast", settings) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("sample: ")]
    assert lines[0].split()[:5] == ["way", "steps", "calls", "passes", "seconds"]
    assert lines[0].split()[-4:] == list(ATTRIBUTES)
    written = settings.read_text("utf-8")
    assert commands.exit_code(*FEW, str(run), "--broadcast", settings, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert settings.read_text("utf-8") == written
    assert figures["broadcast"]["every"] == json.loads(written)["every"]
    assert len(figures["ways"]) == len(lines) - 2
    for line, row in zip(lines[1:], figures["ways"], strict=False):
        assert line.startswith(row["name"])
        assert line[40:].split()[:2] == [str(row["steps"]), str(row["calls"])]
        assert list(row["accuracy"]) == list(ATTRIBUTES)


def test_a_model_that_reads_no_prompts_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.write_run(tmp_path / "run", text_encoder="")
    assert commands.exit_code(*FEW, str(tmp_path / "run")) == 2
    assert "reads no prompts" in capsys.readouterr().err
