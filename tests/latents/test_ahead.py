"""Reading before it is wanted: nobody waits for a hint, nothing is read twice, and memory is bounded."""

import threading
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from mmdit.clips.decode import BadClip, Decoded, ReadRequest
from mmdit.errors import Stopped
from mmdit.latents.ahead import ReadAhead

LIMIT = 20.0  # seconds, for what would wait for ever
BYTES = 3 * 2 * 4 * 4  # of a clip


class Reader:
    """Stands for the ClipReader; reads nothing before `go` is set."""

    def __init__(self) -> None:
        self.go, self.read, self.closed = threading.Event(), list[str](), threading.Event()

    def read_many(self, requests: Iterable[ReadRequest]) -> Iterator[Decoded | BadClip]:
        for request in requests:
            if not self.go.wait(LIMIT) or self.closed.is_set():
                return
            self.read.append(request.path)
            if request.path == "breaks":
                raise Stopped("the decoding processes do not start")
            yield BadClip("empty file") if request.path == "bad" else decoded(request.path)

    def close(self) -> None:
        self.closed.set()
        self.go.set()


def decoded(name: str) -> Decoded:
    return Decoded(np.full((2, 4, 4, 3), len(name), np.uint8), 8.0, 0.0, 0.1, 1.0, 2, 8.0, (4, 4), "pyav")


def requests(*numbers: int, **names: int) -> dict[int, ReadRequest]:
    paths = {number: str(number) for number in numbers} | {number: name for name, number in names.items()}
    return {number: ReadRequest(path, 2, (4, 4), 8.0) for number, path in paths.items()}


@pytest.fixture
def reader() -> Iterator[Reader]:
    made = Reader()
    yield made
    made.close()


def ahead_of(reader: Reader, clips: int = 9) -> ReadAhead:
    return ReadAhead(cast(Any, reader), clips * BYTES)


def test_a_hint_is_not_waited_for_and_is_taken_once_it_is_read(reader: Reader) -> None:
    ahead = ahead_of(reader)
    ahead.hint(requests(1, 2))  # would never return if it waited
    reader.go.set()
    taken = ahead.take(requests(2, 3, bad=4))
    assert list(taken) == [2, 3, 4]
    assert isinstance(taken[2], Decoded) and isinstance(taken[4], BadClip) and taken[4].reason == "empty file"
    ahead.hint(requests(1))
    ahead.take(requests(1))
    assert reader.read == ["1", "2", "3", "bad"]
    ahead.take(requests(1))
    assert reader.read.count("1") == 2  # what was taken is not kept


def test_old_hints_give_way_and_what_has_no_room_is_read_when_it_is_taken(reader: Reader) -> None:
    ahead = ahead_of(reader, clips=3)
    ahead.hint(requests(0))  # the reader is at it
    ahead.hint(requests(1, 2))
    ahead.hint(requests(3, 4, 5, 6))
    reader.go.set()
    ahead.take(requests(3, 4, 5))
    assert not {"1", "2", "6"} & set(reader.read)
    assert set(ahead.take(requests(6, 1))) == {6, 1}
    assert sorted(reader.read)[-5:] == ["1", "3", "4", "5", "6"]


def test_a_failure_comes_to_the_one_who_takes(reader: Reader) -> None:
    ahead = ahead_of(reader)
    reader.go.set()
    ahead.hint(requests(1, breaks=2))
    with pytest.raises(Stopped, match="do not start"):
        ahead.take(requests(breaks=2))
    assert isinstance(ahead.take(requests(1))[1], Decoded)


def test_who_waits_while_it_is_closed_is_told(reader: Reader) -> None:
    ahead = ahead_of(reader)
    ahead.hint(requests(1))
    threading.Timer(0.2, ahead.close).start()
    with pytest.raises(Stopped, match="have ended"):
        ahead.take(requests(1))
