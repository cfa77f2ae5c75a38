"""Reading many clips in child processes that can be killed: a decoder that hangs or crashes costs one clip.

A thread of the parent hands out requests, collects the clips, and ends children that pass their deadline. The children
are fresh interpreters that import numpy and PyAV only: safe beside torch and CUDA, and started in a fifth of a second.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import mmdit
from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.errors import Stopped

START_DEADLINE = 600.0  # seconds for a child to import its libraries, from a slow disk or on a crowded machine
CHILD_MEMORY = 4 << 30  # bytes of address space of one child
TRIES = 2  # a child that died may have been ended from outside: its clip is tried once more

Result = Decoded | BadClip


class _Item(NamedTuple):
    number: int
    request: ReadRequest
    tries: int


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
        self._children: list[_Child] = []
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

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[Result]:
        """The clips in the order of the requests, each decoded or with the reason why not; one call at a time.

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
                if not isinstance(result, Decoded | BadClip):
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
        requests: Iterator[ReadRequest],
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

    def _as_they_come(self, requests: Iterator[ReadRequest], room: threading.Semaphore) -> Iterator[tuple[int, Result]]:
        """Numbered results in the order in which the children finish."""
        new = (_Item(number, request, 1) for number, request in enumerate(requests))
        again: list[_Item] = []
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
                if isinstance(answer, _Ended):
                    self._children.remove(child)
                    if answer.crashed and item.tries < TRIES:
                        again.append(item._replace(tries=item.tries + 1))
                        continue
                    answer = BadClip(answer.why)
                yield item.number, answer

    def _give(self, item: _Item) -> "_Child":
        child = next((child for child in self._children if child.item is None), None)
        if child is None:
            child = _Child(self.deadline)
            self._children.append(child)
        child.give(item)
        return child


class _Ended(NamedTuple):
    why: str
    crashed: bool


class _Child:
    """One decoding process and the clip it is at."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.started = False
        self.item: _Item | None = None
        self.due = 0.0
        self.pipe, theirs = Pipe()
        root = str(Path(mmdit.__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        code = f"from mmdit.clips.reader import serve; serve({theirs.fileno()}, {deadline!r})"
        # Not multiprocessing: its children would import the parent's main program, and torch with it.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if os.environ.get("MMDIT_DEBUG", "") in ("", "0") else None,
        )
        theirs.close()

    def give(self, item: _Item) -> None:
        self.item = item
        self.due = time.monotonic() + (self.deadline if self.started else START_DEADLINE)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then it is found dead when it is asked
            self.pipe.send(item.request)

    def answer(self) -> Result | _Ended | None:
        """What the child has to say; None: nothing yet."""
        try:
            if self.pipe.poll():
                answer: Result | None = self.pipe.recv()
                if answer is None:
                    self.started, self.due = True, time.monotonic() + self.deadline
                else:
                    self.item = None
                return answer
        except (EOFError, ConnectionResetError):
            code = self.end(patience=2.0)
            if not self.started:
                raise Stopped(
                    "the decoding processes do not start", got=f"exit code {code}", fix="set MMDIT_DEBUG=1 to see why"
                ) from None
            return _Ended(
                f"the decoder crashed: {f'signal {-code}' if code < 0 else f'exit code {code}'}", crashed=True
            )
        if time.monotonic() < self.due:
            return None
        self.end()
        if not self.started:
            raise Stopped("the decoding processes do not start", got=f"no sign of life in {START_DEADLINE:g} s")
        return _Ended(f"the decoder hangs: no clip in {self.deadline:g} s", crashed=False)

    def end(self, patience: float = 0.0) -> int:
        """Ends the process, after `patience` seconds to end by itself; its exit code (-n: by signal n)."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.pipe.close()
        return code


def _heard(children: list[_Child]) -> list[_Child]:
    """The children that have something to say or are past their deadline; waits a moment for the first."""
    ready = wait([child.pipe for child in children], 0.05) if children else []
    return [child for child in children if child.pipe in ready or time.monotonic() >= child.due]


def serve(handle: int, deadline: float) -> None:
    """The child's main program: reads one clip after another until the parent closes the pipe."""
    import resource

    from mmdit.clips.decode import read_request

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(OSError, ValueError):  # not every system lets it be set
        resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY, CHILD_MEMORY))
    pipe = Connection(handle)
    pipe.send(None)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            request: ReadRequest = pipe.recv()
            # The kernel ends a child that hangs after its parent was killed; no Python code is needed for that.
            signal.setitimer(signal.ITIMER_REAL, deadline + 10.0)
            answer: Result
            try:
                answer = read_request(request)
            except BadClip as error:
                answer = error
            except MemoryError:
                answer = BadClip(f"too large: needs more than {CHILD_MEMORY >> 30} GiB")
            except Exception as error:
                answer = BadClip(f"unreadable: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(answer)
