"""Progress on the terminal: one line that says what is done, how much is left, and how long that takes."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Called with (done, in all, a few words on how it goes).
Advance = Callable[[int, int, str], None]


@contextmanager
def progress_line(what: str, unit: str, *, quiet: bool = False) -> Iterator[Advance]:
    """A progress bar for one piece of work, for example progress_line("encode", "clips").

    Where the output is no terminal, a plain line is printed at each tenth instead; `quiet`: nothing.
    """
    if quiet:
        yield lambda done, total, words: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(what, unit)
        return
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.fields[words]}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(what, total=None, words="")

        def advance(done: int, total: int, words: str = "") -> None:
            progress.update(task, completed=done, total=total, words=words)

        yield advance


def _plain(what: str, unit: str) -> Advance:
    said = -1

    def advance(done: int, total: int, words: str = "") -> None:
        nonlocal said
        tenth = 10 * done // max(1, total)
        if tenth != said:
            said = tenth
            print(f"{what}: {done} of {total} {unit} {words}".rstrip(), flush=True)

    return advance


@contextmanager
def notes() -> Iterator[None]:
    """Shows what the library warns of (words it cannot read, prompts it cut) as notes."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("note: %(message)s"))
    handler.setLevel(logging.WARNING)
    library = logging.getLogger("mmdit")
    library.addHandler(handler)
    try:
        yield
    finally:
        library.removeHandler(handler)
