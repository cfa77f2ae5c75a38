"""What `mmdit demo` refuses, and what its summary says; the whole way is gone in tests/faults/test_demo_faults.py."""

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mmdit.errors import Refused
from mmdit.tools.clock import step_clock, watch_memory
from mmdit.tools.demo import QUICK, Settings, _agree, _wishes


def test_a_folder_of_something_else_or_of_other_settings_is_refused(tmp_path: Path) -> None:
    _agree(tmp_path / "new", QUICK)
    _agree(tmp_path / "new", QUICK)
    with pytest.raises(Refused, match="demo with other settings.*got batch="):
        _agree(tmp_path / "new", Settings(quick=False, batch=7))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("x")
    with pytest.raises(Refused, match="holds something else"):
        _agree(tmp_path / "other", QUICK)
    with pytest.raises(Refused, match="holds something else"):
        _agree(tmp_path / "other" / "thesis.txt", QUICK)


def test_the_wishes_are_what_the_settings_say_and_each_says_what_it_is_to_show() -> None:
    from mmdit.clips.made import held_out_triples

    settings = Settings(quick=False, prompts=12, held_out_prompts=6, labels_each=2, stills=3)
    wishes = _wishes(settings)
    assert len(wishes) == 12 + 6 + 2 * 5 + 3
    assert len({wish.file for wish in wishes}) == len(wishes)
    held_out = set(held_out_triples(settings.seed))
    for wish in wishes:
        if wish.frames is None and wish.prompt is not None:
            triple = (wish.wanted["garment"], wish.wanted["colour"], wish.wanted["motion"])
            assert (triple in held_out) == (wish.combination == "held-out")
            assert wish.wanted["colour"] in wish.prompt
    assert [wish.condition for wish in wishes].count("label") == 10


def test_enough_clips_are_generated_for_scores_that_mean_something() -> None:
    settings = Settings(quick=False)
    assert settings.prompts >= 128
    assert settings.held_out_prompts >= 60


def test_the_seconds_of_a_step_add_up_over_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    monkeypatch.setattr("mmdit.tools.clock.time.monotonic", lambda: float(next(ticks)))

    def call(*steps: str) -> dict[str, float]:
        with step_clock(tmp_path / "timings.json") as clock:
            for step in steps:
                with clock(step):
                    pass
        seconds: dict[str, float] = json.loads((tmp_path / "timings.json").read_text(encoding="utf-8"))
        return {name: value for name, value in seconds.items() if name != "peak_memory_gib"}

    assert call("encode") == {"encode": 1.0}
    assert call("encode", "train") == {"encode": 2.0, "train": 1.0}


def test_the_memory_of_children_counts() -> None:
    hold = "import time; data = bytearray(200 << 20); print('ready', flush=True); time.sleep(30)"
    with watch_memory() as peak:
        child = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            child.stdout.readline()
            own = psutil.Process().memory_info().rss / 2**30
            for _ in range(100):
                if peak() >= own + 0.15:
                    break
                time.sleep(0.2)
        finally:
            child.kill()
            child.communicate(timeout=30)
    assert peak() >= own + 0.15
