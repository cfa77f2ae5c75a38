"""How long each step of a program takes, over all calls of it, and how much memory it held."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path


@contextmanager
def step_clock(path: Path) -> Iterator[Callable[[str], AbstractContextManager[None]]]:
    """Gives a context manager for each step, by name, that adds its seconds to those in the JSON file `path`.

    The key "peak_memory_gib" holds the most that this process and its children held together during any step.
    """
    from mmdit import files

    spent = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def clock(name: str) -> Iterator[None]:
        before, started = spent.get(name, 0.0), time.monotonic()
        try:
            yield
        finally:
            spent[name] = round(before + time.monotonic() - started, 2)
            spent["peak_memory_gib"] = max(spent.get("peak_memory_gib", 0.0), peak())
            files.write_json(path, spent)

    with watch_memory() as peak:
        yield clock


@contextmanager
def watch_memory() -> Iterator[Callable[[], float]]:
    """While inside, looks twice a second at what this process and its children hold; gives the peak so far, in GiB."""
    import psutil

    highest, ended = 0, threading.Event()

    def look() -> None:
        nonlocal highest
        this = psutil.Process()
        while not ended.wait(0.5):
            held = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    held += process.memory_info().rss
                except psutil.Error:  # it has ended
                    continue
            highest = max(highest, held)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: round(highest / 2**30, 2)
    finally:
        ended.set()
        thread.join()
