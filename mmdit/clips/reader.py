"""Reading many clips in child processes that can be killed: a decoder that hangs or crashes costs one clip.

A thread of the parent hands out requests, collects the clips, and ends children that pass their deadline. The children
are fresh interpreters that import numpy and PyAV only: safe beside torch and CUDA, and started in a fifth of a second.
"""

import os
import queue
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from types import TracebackType
from typing import Self, overload

from mmdit.clips.child import Child, Ended, Item, Request, Result
from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.clips.probe import Probed, ProbeRequest

TRIES = 2  # a child that died may have been ended from outside: its clip is tried once more


def default_workers() -> int:
    """All processors that this process may use but one, which encodes."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count - 1)


class ClipReader:
    """A pool of `workers` decoding processes; each clip has `deadline` seconds. Use it as a context manager.

    At most `ahead` clips are decoded before they are asked for.
    """

    def __init__(self, workers: int | None = None, *, deadline: float = 60.0, ahead: int | None = None) -> None:
        self.workers = default_workers() if workers is None else max(1, workers)
        self.deadline = deadline
        self.ahead = max(ahead or 4 * self.workers, self.workers)
        self._children: list[Child] = []
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children; a `read_many` under way ends too."""
        self._stop.set()
        for child in self._children:
            child.end()
        self._children.clear()

    @overload
    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[Decoded | BadClip]: ...
    @overload
    def read_many(self, requests: Iterable[ProbeRequest]) -> Iterator[Probed | BadClip]: ...
    @overload
    def read_many(self, requests: Iterable[Request]) -> Iterator[Result]: ...
    def read_many(self, requests: Iterable[Request]) -> Iterator[Result]:
        """The clips in the order of the requests, each decoded or with the reason why not; one call at a time.

        A `ProbeRequest` gives what is `Probed` in its place.

        Raises:
            Stopped: the decoding processes do not start.
        """
        if self._stop.is_set():
            raise RuntimeError("this reader was closed")
        results: queue.SimpleQueue[Result | Exception | None] = queue.SimpleQueue()
        room = threading.Semaphore(self.ahead)
        thread = threading.Thread(
            target=self._pump, args=(iter(requests), results, room), name="clip reader", daemon=True
        )
        thread.start()
        finished = False
        try:
            while (result := results.get()) is not None:
                if isinstance(result, Exception) and not isinstance(result, BadClip):
                    raise result
                room.release()
                yield result
            finished = True
        finally:
            if not finished:
                self._stop.set()
            thread.join()
            if not finished:
                self.close()

    def _pump(
        self,
        requests: Iterator[Request],
        results: "queue.SimpleQueue[Result | Exception | None]",
        room: threading.Semaphore,
    ) -> None:
        try:
            for result in self._in_order(self._as_they_come(requests, room)):
                results.put(result)
            results.put(None)
        except Exception as error:
            results.put(error)

    @staticmethod
    def _in_order(results: Iterator[tuple[int, Result]]) -> Iterator[Result]:
        early: dict[int, Result] = {}
        turn = 0
        for number, result in results:
            early[number] = result
            while turn in early:
                yield early.pop(turn)
                turn += 1

    def _as_they_come(self, requests: Iterator[Request], room: threading.Semaphore) -> Iterator[tuple[int, Result]]:
        """Numbered results in the order in which the children finish."""
        new = (Item(number, request, 1) for number, request in enumerate(requests))
        again: list[Item] = []
        more = True
        while not self._stop.is_set():
            busy = [child for child in self._children if child.item is not None]
            while len(busy) < self.workers and (again or (more and room.acquire(timeout=0 if busy else 0.05))):
                item = again.pop() if again else next(new, None)
                if item is None:
                    more = False
                    break
                busy.append(self._give(item))
            if not busy and not more:
                return
            for child in _heard(busy):
                item = child.item
                if item is None or (answer := child.answer()) is None:
                    continue
                if isinstance(answer, Ended):
                    self._children.remove(child)
                    if answer.crashed and item.tries < TRIES:
                        again.append(item._replace(tries=item.tries + 1))
                        continue
                    answer = BadClip(answer.why)
                yield item.number, answer

    def _give(self, item: Item) -> Child:
        child = next((child for child in self._children if child.item is None), None)
        if child is None:
            child = Child(self.deadline)
            self._children.append(child)
        child.give(item)
        return child


def _heard(children: list[Child]) -> list[Child]:
    """The children that have something to say or are past their deadline; waits a moment for the first."""
    ready = wait([child.pipe for child in children], 0.05) if children else []
    return [child for child in children if child.pipe in ready or time.monotonic() >= child.due]
