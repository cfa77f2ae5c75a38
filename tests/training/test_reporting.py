"""The page is written when it should be, and never ends a training."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mmdit.errors import Refused, Stopped
from mmdit.report.run import write_report
from mmdit.training.loop import train
from mmdit.training.reporting import report_kept


def last_step(folder: Path) -> int:
    """Of the newest line in the log, as a page would find it."""
    return (folder / "metrics.jsonl").read_text().count("\n")  # the recipe logs each step


def test_it_is_called_at_each_validation_and_at_the_end(recipe: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    train(recipe(steps=7), tmp_path, report=lambda folder: seen.append(last_step(folder)))
    assert seen == [3, 6, 7]
    train(recipe(steps=7), tmp_path, report=lambda folder: seen.append(-1))
    assert seen == [3, 6, 7]  # nothing was left to do
    train(recipe(), tmp_path / "even", report=lambda folder: seen.append(last_step(folder)))
    assert seen[3:] == [3, 6]  # once where the end is a validation


def test_it_is_called_by_a_run_that_is_stopped(recipe: Any, tmp_path: Path) -> None:
    seen: list[int] = []

    def progress(step: int, *_: object) -> None:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="asked to stop"):
        train(recipe(), tmp_path, progress=progress, report=lambda folder: seen.append(last_step(folder)))
    assert seen == [2]


def test_it_is_not_called_by_a_run_that_is_refused(recipe: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused):
        train(recipe(data__store=str(tmp_path / "none")), tmp_path / "run", report=lambda _: pytest.fail("called"))


def test_the_page_has_the_checkpoint_of_its_step(recipe: Any, tmp_path: Path) -> None:
    train(recipe(checkpoint_every=3), tmp_path, report=write_report)
    page = (tmp_path / "report.html").read_text()
    assert "Finished: all 6 steps are done." in page
    assert "<td>6</td>" in page and "<td>3</td>" in page


def test_its_failure_is_one_line_and_the_training_goes_on(
    recipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MMDIT_FAULT", "full@report.html:written")
    with caplog.at_level(logging.WARNING, "mmdit.training"):
        last = train(recipe(), tmp_path, report=write_report)
    assert last.name == "step-0000006"
    lines = [record.getMessage() for record in caplog.records if "report.html" in record.getMessage()]
    assert len(lines) == 2  # one for each of the two pages
    assert all("No space left" in line and "\n" not in line for line in lines)
    assert not list(tmp_path.glob(".part-*"))


def test_a_failure_does_not_hide_what_stopped_the_run(recipe: Any, tmp_path: Path) -> None:
    def fail(_: Path) -> None:
        raise ValueError("two\nlines")

    with pytest.raises(KeyError, match="mine"), report_kept(fail, recipe(), tmp_path) as step_done:
        step_done(1)
        raise KeyError("mine")


def test_without_a_page_nothing_is_done(recipe: Any, tmp_path: Path) -> None:
    with report_kept(None, recipe(), tmp_path) as step_done:
        step_done(3)
    assert not list(tmp_path.iterdir())
