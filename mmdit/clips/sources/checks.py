"""Checks that all sources share: paths, texts, and the count of what is out of the ordinary."""

import os
import stat
from pathlib import Path

from mmdit.errors import Refused

MAX_TEXT = 16 << 20
"""Bytes of a text file or member that is read whole."""


class Notes:
    """Counts by what they are, each with the first place it was seen at."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.first: dict[str, str] = {}

    def add(self, what: str, where: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        self.first.setdefault(what, where)


class Paths:
    """Tells paths that stay below a folder from others. A folder is resolved once, a file costs one lstat."""

    def __init__(self, folder: Path, notes: Notes) -> None:
        self.folder = folder
        self._notes = notes
        self._root = os.path.realpath(folder)
        self._inside: set[str] = set()

    def below(self, text: str, where: str) -> str:
        """The relative path, when it cannot lead to anything but a regular file below the folder.

        A file that is not there passes: it is counted here, and found out when it is read.
        """
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if not parts or text.startswith("/") or ".." in parts or ":" in parts[0] or "\0" in text:
            raise Refused(
                "bad path", where=where, got=shown(text), expected=f"a file below {self.folder}, relative to it"
            )
        check_text(text, where)
        relative = "/".join(parts)
        parent = "/".join(parts[:-1])
        if parent not in self._inside:
            self._check_inside(os.path.join(self._root, parent), where)
            self._inside.add(parent)
        path = os.path.join(self._root, relative)
        try:
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                self._check_inside(path, where)
                mode = os.stat(path).st_mode
        except OSError:
            self._notes.add("listed but not there", where)
            return relative
        if not stat.S_ISREG(mode):
            raise Refused("not a regular file", where=where, got=shown(text))
        return relative

    def _check_inside(self, path: str, where: str) -> None:
        target = os.path.realpath(path)
        if target != self._root and not target.startswith(self._root.rstrip("/") + "/"):
            raise Refused(
                "a link that leads out of the folder", where=where, got=shown(target), fix="copy what it leads to"
            )


def shown(value: object) -> str:
    """A value as a refusal shows it: printable, and not longer than a line takes."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:80]}... ({len(text)} characters)"


def fault_of(text: str) -> str | None:
    """What makes a text unfit to be stored; bytes that are not UTF-8 were read as lone surrogates."""
    if "\0" in text:
        return "a NUL character"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            read_as_byte = 0xDC80 <= code <= 0xDCFF
            return f"the text is not UTF-8 (byte 0x{code & 0xFF:02x})" if read_as_byte else "half a character"
    return None


def check_text(text: str, where: str) -> str:
    if (fault := fault_of(text)) is not None:
        raise Refused(fault, where=where, got=shown(text), fix="save it as UTF-8 text")
    return text


def decoded(data: bytes) -> str:
    """Bytes as text, without a byte order mark; what is not UTF-8 becomes lone surrogates (`fault_of`)."""
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def read_text(path: Path) -> str:
    with open(path, "rb") as file:
        data = file.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise Refused("a text that is too long", where=path, got=f"over {MAX_TEXT >> 20} MiB")
    return decoded(data)
