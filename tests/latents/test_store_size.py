"""What it costs to open a store of ten million clips.

By hand, with the figures printed: python -m pytest -m slow -s tests/latents/test_store_size.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import big_store
import pytest

from mmdit.latents.rows import ROW_GROUP

CLIPS, ROW = 10_000_000, 7_654_321


@pytest.mark.slow
def test_ten_million_clips_open_at_once(tmp_path: Path) -> None:
    big_store.write_big_store(tmp_path, CLIPS)
    words = [sys.executable, big_store.__file__, str(tmp_path), str(ROW)]
    path = os.pathsep.join([str(Path(big_store.__file__).parent), os.environ.get("PYTHONPATH", "")])
    ended = subprocess.run(words, capture_output=True, text=True, timeout=100, env=os.environ | {"PYTHONPATH": path})
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    size = (tmp_path / "index.parquet").stat().st_size
    print(
        f"\n{told['clips']:,} clips, index {size / 2**20:.0f} MiB: opened in {told['opened']:.2f} s, with a row and a "
        f"latent's place in {told['seconds']:.2f} s, at most {told['peak'] / 2**30:.2f} GiB of memory, torch and all"
    )
    assert told["clips"] == CLIPS and told["right"] and told["groups"] == [ROW // ROW_GROUP]
    assert told["peak"] < 2**30
