"""The page of a run, kept up to date while it is trained."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from mmdit.training.config import RunConfig

log = logging.getLogger("mmdit.training")

# Writes the page of the run in a folder, such as `mmdit.report.run.write_report`.
Report = Callable[[Path], object]


@contextlib.contextmanager
def report_kept(report: Report | None, config: RunConfig, folder: Path) -> Iterator[Callable[[int], None]]:
    """Yields what is called with the number of steps done, after each; it writes the page where validation was due.

    The page is written at the end too, in whatever way that comes, but not by a run that did no step. A page that
    cannot be written is one line of the log, and never the end of the training.

    Args:
        report: None for no page, as on all processes but the main one.
    """
    done = 0

    def write() -> None:
        try:
            if report is not None:
                report(folder)
        except Exception as error:
            log.warning("report.html was not written: %s", " ".join(f"{type(error).__name__}: {error}".split()))

    def step_done(step: int) -> None:
        nonlocal done
        done = step
        if step % config.validate_every == 0 and step < config.steps:
            write()

    try:
        yield step_done
    finally:
        if done:  # once more where a validation came last: its checkpoint is there by now
            write()
