"""Clips read by child processes before they are wanted."""

import queue
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import Future

from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.clips.reader import ClipReader
from mmdit.errors import Stopped

Answer = Decoded | BadClip
_Asked = list[tuple[ReadRequest, "Future[Answer]"]]


class ReadAhead:
    """A `ClipReader` that works while nobody waits for it. Clips go by a number, the same for the same request.

    Args:
        reader: what reads; this object closes it.
        room: bytes of decoded frames that may wait to be taken.
    """

    def __init__(self, reader: ClipReader, room: int) -> None:
        self._reader, self._room, self._held = reader, room, 0
        self._coming: OrderedDict[int, tuple[int, Future[Answer]]] = OrderedDict()  # bytes, clip
        self._asked: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._lock, self._closed = threading.Lock(), False
        # A daemon: a process that ends does not wait for a decoder that hangs.
        threading.Thread(target=_serve, args=(reader, self._asked), name="read ahead", daemon=True).start()

    def hint(self, requests: Mapping[int, ReadRequest]) -> None:
        """Begins to read these clips and returns. Those of earlier hints that nobody took give way where there is no
        room; what has no room then is left out."""
        with self._lock:
            asked: _Asked = []
            for number, request in requests.items():
                size = 3 * request.frames * request.size[0] * request.size[1]
                while self._held + size > self._room and (old := self._oldest(requests)) is not None:
                    self._let_go(old).cancel()
                if number not in self._coming and self._held + size <= self._room:
                    self._coming[number] = size, _ask(request, asked)
                    self._held += size
            self._asked.put(asked)

    def take(self, requests: Mapping[int, ReadRequest]) -> dict[int, Answer]:
        """These clips, each read or with the reason why not; waits for them.

        Raises:
            Stopped: the reading processes do not start, or have ended.
        """
        with self._lock:
            if self._closed:
                raise Stopped("the reading processes have ended")
            asked: _Asked = []
            futures: dict[int, Future[Answer]] = {}
            for number, request in requests.items():
                if number in self._coming:
                    futures[number] = self._let_go(number)
                else:
                    futures[number] = _ask(request, asked)
            self._asked.put(asked)
        return {number: future.result() for number, future in futures.items()}

    def close(self) -> None:
        """Ends the reading processes; nothing can be taken any more."""
        with self._lock:
            self._closed = True
            self._asked.put(None)
        self._reader.close()

    def _oldest(self, but: Mapping[int, ReadRequest]) -> int | None:
        return next((number for number in self._coming if number not in but), None)

    def _let_go(self, number: int) -> "Future[Answer]":
        size, future = self._coming.pop(number)
        self._held -= size
        return future


def _ask(request: ReadRequest, asked: _Asked) -> "Future[Answer]":
    future: Future[Answer] = Future()
    asked.append((request, future))
    return future


def _serve(reader: ClipReader, asked: "queue.SimpleQueue[_Asked | None]") -> None:
    while (batch := asked.get()) is not None:
        batch = [(request, future) for request, future in batch if future.set_running_or_notify_cancel()]
        failure: Exception = Stopped("the reading processes have ended")
        try:
            # The results first, so that they are asked for an end as well: else the reader takes it for a break.
            for answer, (_, future) in zip(reader.read_many(request for request, _ in batch), batch, strict=False):
                future.set_result(answer)
        except Exception as error:
            failure = error
        for _, future in batch:
            if not future.done():
                future.set_exception(failure)
