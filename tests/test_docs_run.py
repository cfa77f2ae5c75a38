"""The commands of the README and of the first page are really run, in their order, on as little as there can be."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_commands import ROOT, commands

# What makes a command one of seconds.
SMALL = {
    "demo": ["--quick"],
    "make-clips": ["--count", "60", "--workers", "1"],
    "train": ["steps=4", "data.batch_size=8", "validate_every=4", "validation_clips=4", "checkpoint_every=4"],
    "generate": ["--steps", "2"],
    "evaluate": ["samples=8", "real=8", "steps=2", "kid_size=4"],
    "study": ["--plan"],
    "bench encode": ["--clips", "16", "--runs", "1"],
    "bench train": ["--steps", "3", "--runs", "1", "data.batch_size=8"],
    "bench load": ["--steps", "3", "--runs", "1", "data.batch_size=8"],
    "bench memory": ["--depth", "1", "--clips", "2"],
    "bench model": ["--depth", "1", "--runs", "1"],
    "bench growth": ["--most-tokens", "256"],
    "bench sample": ["--prompts", "2", "--steps", "2", "--reference-steps", "3", "--runs", "1", "--batch", "2"],
}
NOT_RUN = {
    "app": "a server that does not end by itself",
    "convert": "weights from elsewhere",
    "train-codec": "thousands of clips; tests/tools/test_train_codec.py runs it on few",
    "train-probe": "ends with 4 unless it was trained for long; tests/tools/test_train_probe.py",
    "evaluate runs/given": "a network that was trained with given frames; tests/tools/test_evaluate.py",
    "bench compare": "needs a repository with a history; tests/tools/test_bench.py",
}


def run(words: list[str], folder: Path) -> str:
    """What `mmdit WORDS` prints in a folder."""
    command = [sys.executable, "-c", "from mmdit.tools.cli import main; main()", *words]
    environment = os.environ | {"PYTHONSAFEPATH": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, f"mmdit {' '.join(words)}: {ended.returncode}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def runnable(page: str) -> list[list[str]]:
    """The words of what a page tells to type in whole: blocks, then sentences. What has a user's own in capitals, and
    what a sentence only begins, is left out."""
    found = []
    for command in commands(ROOT / page):
        program, *words = command.words
        names = {" ".join(words[:2]), words[0] if words else ""}
        own = any(re.fullmatch(r"[A-Z]{2,}\S*", word) for word in words)
        if program != "mmdit" or own or names & NOT_RUN.keys() or not (command.whole or _is_whole(words)):
            continue
        more = next((SMALL[name] for name in (" ".join(words[:2]), words[0]) if name in SMALL), [])
        small = words if set(more) <= set(words) else [*words, *more]
        if small not in found:
            found.append(small)
    return found


def _is_whole(words: list[str]) -> bool:
    """Whether a command in a sentence has its arguments: all but a few have one that is no option."""
    if words[0] in ("demo", "--help") or words[:2] in (["bench", "encode"], ["bench", "memory"], ["bench", "growth"]):
        return True
    return len([word for word in words[1:] if not word.startswith("-")]) > (words[0] == "bench")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["docs/index.md", "README.md"])
def test_the_commands_run_in_their_order(page: str, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    words = runnable(page)
    assert {"demo", "encode", "train", "generate", "verify"} <= {one[0] for one in words}
    if page == "README.md":  # begins with a folder of the user's and the demo that `make demo` runs
        run(["make-clips", "my_clips", *SMALL["make-clips"]], tmp_path)
        run(["demo", "--quick"], tmp_path)
    for one in words:
        print("mmdit", *one, flush=True)
        run(one, tmp_path)
    assert (tmp_path / "runs/mine/report.html").is_file()
