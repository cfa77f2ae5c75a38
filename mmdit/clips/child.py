"""One decoding process of `mmdit.clips.reader`: the parent's end of it, and its main program."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import NamedTuple

import mmdit
from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.clips.probe import Probed, ProbeRequest, probe
from mmdit.errors import Stopped

START_DEADLINE = 600.0  # seconds for a child to import its libraries, from a slow disk or on a crowded machine
CHILD_MEMORY = 4 << 30  # bytes of address space of one child

Request = ReadRequest | ProbeRequest
Result = Decoded | Probed | BadClip


class Item(NamedTuple):
    number: int
    request: Request
    tries: int


class Ended(NamedTuple):
    why: str
    crashed: bool


class Child:
    """One decoding process and the clip it is at."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.started = False
        self.item: Item | None = None
        self.due = 0.0
        self.pipe, theirs = Pipe()
        root = str(Path(mmdit.__file__).resolve().parents[1])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        code = f"from mmdit.clips.child import serve; serve({theirs.fileno()}, {deadline!r})"
        # Not multiprocessing: its children would import the parent's main program, and torch with it.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if os.environ.get("MMDIT_DEBUG", "") in ("", "0") else None,
        )
        theirs.close()

    def give(self, item: Item) -> None:
        self.item = item
        self.due = time.monotonic() + (self.deadline if self.started else START_DEADLINE)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # then it is found dead when it is asked
            self.pipe.send(item.request)

    def answer(self) -> Result | Ended | None:
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
            return Ended(f"the decoder crashed: {f'signal {-code}' if code < 0 else f'exit code {code}'}", crashed=True)
        if time.monotonic() < self.due:
            return None
        self.end()
        if not self.started:
            raise Stopped("the decoding processes do not start", got=f"no sign of life in {START_DEADLINE:g} s")
        return Ended(f"the decoder hangs: no clip in {self.deadline:g} s", crashed=False)

    def end(self, patience: float = 0.0) -> int:
        """Ends the process, after `patience` seconds to end by itself; its exit code (-n: by signal n)."""
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.pipe.close()
        return code


def serve(handle: int, deadline: float) -> None:
    """The child's main program: reads one clip after another until the parent closes the pipe."""
    import resource

    from mmdit.clips.decode import read_request  # here, so that a test can put another in its place

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its children
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(OSError, ValueError):  # not every system lets it be set
        resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY, CHILD_MEMORY))
    pipe = Connection(handle)
    pipe.send(None)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            request: Request = pipe.recv()
            # The kernel ends a child that hangs after its parent was killed; no Python code is needed for that.
            signal.setitimer(signal.ITIMER_REAL, deadline + 10.0)
            answer: Result
            try:
                answer = read_request(request) if isinstance(request, ReadRequest) else probe(request)
            except BadClip as error:
                answer = error
            except MemoryError:
                answer = BadClip(f"too large: needs more than {CHILD_MEMORY >> 30} GiB")
            except Exception as error:
                answer = BadClip(f"unreadable: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            signal.setitimer(signal.ITIMER_REAL, 0)
            pipe.send(answer)
