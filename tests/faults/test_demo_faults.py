"""The demo, killed again and again, ends with the summary of one that was left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CODE = """
import sys
from pathlib import Path
from mmdit.errors import Stopped
from mmdit.tools.demo import Settings, make_demo
try:
    make_demo(Path(sys.argv[1]), Settings(
        quick=True, clips=36, real_clips=3, prompts=3, held_out_prompts=2, labels_each=1, stills=1, shown=1,
        sampling_steps=2, batch=4,
        train=("steps=4", "data.batch_size=4", "checkpoint_every=2", "log_every=1", "validate_every=4",
               "model.depth=1", "model.hidden_size=32", "model.num_heads=2"),
    ))
except Stopped:  # a worker was the one that was killed
    sys.exit(4)
"""

# One kill in each step of the demo, in its order; each is the next thing that the command comes to.
KILLS = (
    "kill@clips/000020.mp4:begin",
    "kill@shards/00000.safetensors:renamed",
    "kill@step-0000004:written",
    "kill@held-out/001.mp4:begin",
    "kill@scores.json:written",
    "kill@report.html:begin",
)


def demo(folder: Path, fault: str | None = None) -> int:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"MMDIT_FAULT": fault} if fault else {})
    command = [sys.executable, "-c", CODE, str(folder)]
    done = subprocess.run(command, env=environment, timeout=280, check=False, capture_output=True, text=True)
    assert done.returncode in (0, -9, 4), done.stderr
    return done.returncode


def what_counts(folder: Path) -> Any:
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    del summary["timings"]
    return summary


@pytest.mark.slow
def test_killed_in_every_step_it_ends_with_the_same_summary(tmp_path: Path) -> None:
    for fault in KILLS:
        assert demo(tmp_path / "killed", fault) != 0, f"the demo never came to {fault}"
    assert demo(tmp_path / "killed") == 0
    assert demo(tmp_path / "whole") == 0
    assert what_counts(tmp_path / "killed") == what_counts(tmp_path / "whole")
    assert (tmp_path / "killed" / "gallery.webp").read_bytes() == (tmp_path / "whole" / "gallery.webp").read_bytes()
