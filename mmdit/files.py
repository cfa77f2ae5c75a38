"""All writing goes through here: a path either holds a whole artefact or does not exist.

Each writer makes its artefact beside the target under a temporary name, flushes it to disk, and renames it into place.
A process that dies at any moment leaves at most a temporary part, which `sweep` removes.

For tests, the environment variable MMDIT_FAULT plants a fault at a write: `KIND@TEXT` or `KIND@TEXT#N`, at the N-th
write (from 1) whose `path:stage` contains TEXT. Kinds: `kill` (the process ends at once, as by kill -9), `full` (the
disk is full), `delay` (one second), `corrupt` (one byte of the finished temporary file is flipped). Stages: `begin`,
`written` (whole but not renamed yet), `renamed`; before a folder is removed `remove`.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mmdit.errors import Refused

PART = ".part-"
_UMASK = os.umask(0o022)  # can only be read by setting it
os.umask(_UMASK)
_seen: dict[str, int] = {}
_counting = threading.Lock()  # a thread may write beside the main one


def _fault_point(path: Path, stage: str, part: Path | None = None) -> None:
    plan = os.environ.get("MMDIT_FAULT")
    if not plan:
        return
    kind, _, rest = plan.partition("@")
    text, _, nth = rest.partition("#")
    if text not in f"{path.as_posix()}:{stage}":
        return
    with _counting:
        seen = _seen[plan] = _seen.get(plan, 0) + 1
    if nth and seen != int(nth):
        return
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif kind == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    elif kind == "delay":
        time.sleep(1.0)
    elif kind == "corrupt" and part is not None and part.is_file():
        data = bytearray(part.read_bytes())
        data[len(data) // 2] ^= 0xFF
        part.write_bytes(data)


def _open_to_others(path: Path) -> None:
    """Gives a file the permissions that new files have here; safetensors keeps its files to their owner."""
    if path.is_file():
        path.chmod(0o666 & ~_UMASK)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_file(path: str | os.PathLike[str], *, durable: bool = True) -> Iterator[Path]:
    """Yields a temporary path with the same suffix; the body writes there; on leaving it becomes `path`.

    `durable=False` leaves out the flush to disk, for many small files that can be made again. Raises Refused where the
    path is a device, a pipe or a folder, which renaming would replace.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise Refused("this is no file that could be written anew", where=path, got="a device, a pipe or a folder",
                      fix="name another one")  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    try:
        _fault_point(path, "begin")
        yield part
        _open_to_others(part)
        if durable:
            _fsync(part)
        _fault_point(path, "written", part)
        os.replace(part, path)
        if durable:
            _fsync(path.parent)
        _fault_point(path, "renamed")
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary folder; the body fills it; on leaving it becomes `path`, which must not exist yet."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        raise FileExistsError(errno.EEXIST, "is there already", str(path))
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        _fault_point(path, "begin")
        yield part
        for inner in sorted(part.rglob("*")):
            _open_to_others(inner)
            _fsync(inner)
        _fsync(part)
        _fault_point(path, "written", part)
        os.replace(part, path)
        _fsync(path.parent)
        _fault_point(path, "renamed")
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, durable: bool = True) -> None:
    with new_file(path, durable=durable) as part:
        part.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes JSON with sorted keys, so that equal values are equal files."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def write_safetensors(
    path: str | os.PathLike[str], tensors: dict[str, Any], metadata: dict[str, str] | None = None
) -> None:
    """Writes torch tensors as one safetensors file."""
    from safetensors.torch import save_file

    with new_file(path) as part:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)


def write_parquet(path: str | os.PathLike[str], table: Any) -> None:
    """Writes a pyarrow table."""
    import pyarrow.parquet

    with new_file(path) as part:
        pyarrow.parquet.write_table(table, part)


def remove_folder(path: str | os.PathLike[str]) -> None:
    """Removes a whole folder: it is renamed first, so that half of it is never taken for the whole."""
    path = Path(path)
    part = path.with_name(f"{PART}{os.getpid()}-{path.name}")
    _fault_point(path, "remove")
    path.rename(part)
    _fault_point(path, "renamed")
    shutil.rmtree(part)


def sweep(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary parts that dead processes left directly in `folder`; call it under the folder's lock."""
    for part in Path(folder).glob(f"{PART}*"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


class Lock:
    """A lock that is held."""

    def __init__(self, handle: IO[str]) -> None:
        self._handle = handle

    def share(self) -> None:
        """Lets in those who ask for a shared lock; still nobody who wants the folder alone."""
        fcntl.flock(self._handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextlib.contextmanager
def lock(folder: str | os.PathLike[str], *, shared: bool = False) -> Iterator[Lock]:
    """Holds `folder` for this process alone, or for those who share it (`shared`, once the first one allows it); the
    operating system lets go of it when the process ends, however it ends. A folder that was made for it, and in which
    nothing was written before a refusal, is taken away again.

    Raises Refused when another process holds it, or nothing can be written there.
    """
    folder = Path(folder)
    try:
        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  closed by the next line
    except OSError as error:
        raise Refused(
            "the folder cannot be written", where=folder, got=error.strerror or type(error).__name__,
            expected="a folder, or a place for one", fix="name another folder",
        ) from None  # fmt: skip
    with handle:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise Refused(
                "the folder is in use",
                where=folder,
                got=f"process {handle.read().strip() or 'unknown'} at work there",
                expected="no other process",
                fix="wait for it, end it, or name another folder",
            ) from None
        if not shared:
            handle.truncate(0)
            handle.write(str(os.getpid()))
            handle.flush()
        try:
            yield Lock(handle)
        except Refused:
            if is_new and [path.name for path in folder.iterdir()] == [".lock"]:
                (folder / ".lock").unlink()
                folder.rmdir()
            raise


def append_line(path: str | os.PathLike[str], line: str) -> None:
    """Adds one line to a log; a line that was cut off by a crash before it is dropped first."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _fault_point(path, "begin")
    with open(path, "ab+") as handle:
        size = handle.seek(0, os.SEEK_END)
        if size:
            handle.seek(size - 1)
            if handle.read(1) != b"\n":
                handle.seek(0)
                handle.truncate(handle.read().rfind(b"\n") + 1)
        handle.write(line.encode("utf-8") + b"\n")
    _fault_point(path, "written", path)
