"""The bytes of one video or image: a whole file, or a part of one such as a member of a tar file."""

import io
import os
import stat
from typing import Self


class BadClip(Exception):
    """A clip that cannot be read. `reason` is one line: what kind of fault, then a colon and the details."""

    @property
    def reason(self) -> str:
        return str(self.args[0])


class Window(io.RawIOBase):
    """Bytes [offset, offset + length) of the file `path`, to be read and sought in as if they were a file.

    `length` None is everything from `offset` on. Nothing is copied; memory does not grow with the length.

    Raises:
        BadClip: no such regular file, no permission, nothing in it, or it ends before the window does.
    """

    def __init__(self, path: str, offset: int = 0, length: int | None = None) -> None:
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened: a pipe would be waited for
                raise BadClip("not a regular file")
            self._file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError:
            raise BadClip("no such file") from None
        except PermissionError:
            raise BadClip("no permission to read it") from None
        except OSError as error:
            raise BadClip(f"unreadable: {error.strerror}") from None
        self._offset, self._place = offset, 0
        there = os.fstat(self._file).st_size - offset
        self.length = max(there, 0) if length is None else length
        if self.length == 0 or self.length > there:
            self.close()
            raise BadClip("empty file" if self.length == 0 else f"cut short: {self.length - there} bytes are missing")

    def close(self) -> None:
        if not self.closed:
            os.close(self._file)
        super().close()

    def __enter__(self) -> Self:
        return self

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.length}.get(whence)
        if start is None or start + offset < 0:
            raise ValueError(f"no such place: {offset} from {whence}")
        self._place = start + offset
        return self._place

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # type: ignore[override]
        view = memoryview(buffer).cast("B")
        data = os.pread(self._file, max(0, min(len(view), self.length - self._place)), self._offset + self._place)
        view[: len(data)] = data
        self._place += len(data)
        return len(data)
