"""The members of a tar file by its headers; nothing is unpacked."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from mmdit.clips.sources.checks import MAX_TEXT, shown
from mmdit.errors import Refused

REMEDY = "copy or make it again"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tar.lz4")
_BLOCK = 512


def is_tar(name: str) -> bool:
    """Whether a name is that of a tar file, a compressed one included."""
    return name.lower().endswith((".tar", *_PACKED))


class _Headers:
    """A file that tarfile reads headers from: a header that claims to be huge is refused, not read into memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_TEXT:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def members(tar: Path, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """The members of a plain tar, each of which lies within the file, one after another.

    Raises:
        Refused: a compressed or damaged tar, one cut short, or one with data after its end.
    """
    _check_packing(tar, file)
    length, end = os.fstat(file.fileno()).st_size, 0
    file.seek(0)
    try:
        with tarfile.open(fileobj=_Headers(file), mode="r:") as archive:  # type: ignore[call-overload]
            while (member := archive.next()) is not None:
                archive.members = []  # tarfile keeps them all
                where = f"{tar}, {shown(member.name)} at byte {member.offset}"
                if member.size < 0:  # the next one would lie before this one, for ever
                    raise Refused("a damaged tar", where=where, got=f"a member of {member.size} bytes", fix=REMEDY)
                end = member.offset_data + (member.size if member.isreg() else 0)
                if end > length:
                    raise Refused(
                        "a tar that is cut short", where=where, got=f"{length} bytes",
                        expected=f"{end} or more", fix=REMEDY,
                    )  # fmt: skip
                yield member
            end = archive.offset
    except (tarfile.TarError, RecursionError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise Refused("a damaged tar", where=f"{tar}, after byte {end}", got=error, fix=REMEDY) from None
    _check_end(tar, file, end)


def _check_end(tar: Path, file: BinaryIO, end: int) -> None:
    """A tar ends with blocks of zeros; tarfile takes anything that is no header for the end, and reads no further."""
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise Refused(
            "a tar that is cut short", where=f"{tar}, byte {end}", got="no end mark",
            expected=f"{_BLOCK} zeros", fix=REMEDY,
        )  # fmt: skip
    while block:
        if block.count(0) < len(block):
            raise Refused(
                "a damaged tar, or one with another behind it", where=f"{tar}, after byte {end}",
                got="data where it should end", fix="make it again; tar files are not joined by cat",
            )  # fmt: skip
        block = file.read(1 << 20)


def _check_packing(tar: Path, file: BinaryIO) -> None:
    magic = file.read(6)
    if tar.name.lower().endswith(_PACKED) or magic.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        raise Refused(
            "a compressed tar", where=tar, expected="a plain .tar, whose members can be read in place",
            fix="unpack it once: gunzip FILE.tar.gz, unxz, zstd -d, ...",
        )  # fmt: skip
