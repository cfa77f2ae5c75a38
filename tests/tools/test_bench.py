"""Benchmarks: results name machine, commit and command, and are compared with an earlier commit's in turns."""

import json
import subprocess
from pathlib import Path

import commands
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmdit.errors import Refused, Stopped
from mmdit.latents.codec import load_codec
from mmdit.tools import bench_compare, bench_output, cli


def test_a_result_names_its_machine_its_commit_and_its_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli._words[:] = ["train", "debug"]
    bench_output.tell({"step": 1.5}, ["a line"], as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert told["command"] == ["train", "debug"] and told["figures"] == {"step": 1.5}
    assert {"commit", "date", "device", "cores", "threads", "torch", "python"} <= told.keys()
    bench_output.tell({"step": 1.5}, ["a line"], as_json=False)
    assert capsys.readouterr().out.splitlines()[1:] == ["a line"]


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of two commits whose benchmarks take 2 and 3 seconds, and the result of the first one."""
    tree = tmp_path / "tree"
    for folder in ("mmdit", "configs", "pipelines", "tools"):
        (tree / folder).mkdir(parents=True)
        (tree / folder / "__init__.py").touch()

    def git(*words: str) -> str:
        told = subprocess.run(["git", "-C", str(tree), "-c", "user.name=a", "-c", "user.email=a@b", *words],
                              capture_output=True, text=True, timeout=60, check=True)  # fmt: skip
        return told.stdout.strip()

    git("init", "--quiet")
    commits = []
    for seconds in (2, 3):
        (tree / "tools/bench.py").write_text(
            "import json, sys\n"
            f"print(json.dumps({{'figures': {{'step': {seconds}, 'words': len(sys.argv), 'parts': [{seconds}, 7]}}}}))"
        )
        git("add", ".")
        git("commit", "--quiet", "-m", "one")
        commits.append(git("rev-parse", "HEAD"))
    monkeypatch.setattr(bench_output, "source_folder", lambda: tree)
    result = tmp_path / "result.json"
    result.write_text(json.dumps({"command": ["train", "debug"], "commit": commits[0] + "+", "figures": {}}))
    return result


def test_both_commits_are_measured_in_turns(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench_compare.main(history, rounds=1, commit=None, as_json=True)
    rows = {row["figure"]: row for row in json.loads(capsys.readouterr().out)["figures"]["rows"]}
    assert rows["step"] == {"figure": "step", "before": 2, "now": 3, "ratio": 1.5}
    assert rows.keys() == {"step", "parts[0]"}  # of equal figures nothing is told
    trees = subprocess.run(
        ["git", "-C", str(history.parent / "tree"), "worktree", "list"], capture_output=True, text=True
    )
    assert len(trees.stdout.splitlines()) == 1


def test_what_cannot_be_compared_is_refused(history: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be checked out"):
        bench_compare.main(history, rounds=1, commit="f" * 40, as_json=True)
    (tmp_path / "tree/tools/bench.py").write_text("raise SystemExit('mmdit: no such recipe')")
    with pytest.raises(Stopped, match="no such recipe"):
        bench_compare.main(history, rounds=1, commit=None, as_json=True)
    for text in ("", "[]", '{"command": ["train"], "commit": null}', '{"command": [], "commit": "1"}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(Refused):
            bench_compare.main(tmp_path / "bad.json", rounds=1, commit=None, as_json=True)


def test_encoding_is_told_with_what_the_codec_computes(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bench", "encode", "--clips", "16", "--runs", "1", "--bucket", "3x32x32", "--source-size", "32x32")
    assert commands.exit_code(*words, "--json") == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert figures["about"]["precision"] == "float32" and figures["memory"] > 10**7
    assert list(figures["clips_per_second"]) == ["encode", "codec alone", "reading alone", "plain loop"]
    with FlopCounterMode(display=False) as counted:
        load_codec("fashion").encode(torch.zeros(2, 3, 3, 32, 32))
    assert 2 * figures["flops_per_clip"] == counted.get_total_flops() > 0
    assert commands.exit_code(*words) == 0
    lines = {line[:14].strip(): line for line in capsys.readouterr().out.splitlines()}
    assert lines["codec alone"].rstrip().endswith("%") and "GFLOP/s" in lines[""]
    assert len(lines["reading alone"].split()) == 4  # it computes nothing
