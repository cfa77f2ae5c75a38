"""Which process makes which shard: whoever holds its claim, and a claim ends with the process that holds it."""

import fcntl
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Self

from mmdit.latents.layout import shard_paths


class Claims:
    """The shards of one run, shared out among the processes that work on a folder.

    No process waits for another to be given work, and none has to be told that another one died: the operating system
    lets go of its claims, and whoever looks next takes them. Use it as a context manager.
    """

    def __init__(self, folder: Path, work: Path) -> None:
        self.folder, self.work = folder, work
        self._held: dict[int, IO[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._held):
            self.release(number)

    def take(self, numbers: Sequence[int]) -> Iterator[int]:
        """Claims, one by one as they are asked for, the shards that are neither done nor in another's hands."""
        for number in numbers:
            if self.is_done(number) or number in self._held:
                continue
            handle = open(self.work / f"{number:05d}.claim", "w", encoding="utf-8")  # noqa: SIM115  # held for longer than this call
            with ExitStack() as unless_taken:
                unless_taken.callback(handle.close)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if self.is_done(number):  # by the one who held it a moment ago
                    continue
                unless_taken.pop_all()
            self._held[number] = handle
            yield number

    def release(self, number: int) -> None:
        """Gives a claim back, whether its shard is done or not."""
        self._held.pop(number).close()

    def wait(self) -> None:
        """A moment, until there may be something new."""
        time.sleep(0.2)

    def is_done(self, number: int) -> bool:
        """Whether both files of a shard are there; the rows are written last."""
        return shard_paths(self.folder, number)[1].is_file()
