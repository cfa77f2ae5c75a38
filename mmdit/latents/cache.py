"""Shards of remote stores, kept on this machine within a limit; shared by all processes of one user."""

import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from mmdit import files
from mmdit.errors import Refused, Stopped

FOLDER, LIMIT = "MMDIT_CACHE", "MMDIT_CACHE_GB"
"""Environment variables: the cache's folder, and how large it may become."""
_TRIES = 100


class Lease:
    """A shared lock on a file, for as long as this object lives; in a forked process, as long as its copy does too."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_RDONLY)
        fcntl.flock(self.handle, fcntl.LOCK_SH)

    def __del__(self) -> None:
        if "handle" in vars(self):
            os.close(self.handle)


class ShardCache:
    """Files by the sha256 of what is in them, at most `limit` bytes together.

    A file that is read is held by a shared lock of the operating system, one that is being fetched by an exclusive one;
    only what nobody holds is thrown away, the least recently taken first. Locks end with their processes.

    Args:
        folder: None: $MMDIT_CACHE, or mmdit/ in the user's cache folder.
        limit: in bytes; None: $MMDIT_CACHE_GB, or 50 GB.
    """

    def __init__(self, folder: str | Path | None = None, limit: int | None = None) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = Path(folder or os.environ.get(FOLDER) or home / "mmdit")
        self.limit = limit if limit is not None else _limit()

    def take(self, size: int, sha256: str, where: str, fetch: Callable[[Path], object]) -> tuple[Path, Lease]:
        """The local file with this content, and a lease on it: the file stays while that lives.

        Args:
            where: the file's address, for messages.
            fetch: writes the file to a path.

        Raises:
            Refused: it cannot be fetched, or is not what size and hash say.
            Stopped: the shards that are open leave no room for it.
        """
        path = self.folder / f"{sha256}-{size}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(_TRIES):  # between fetching and holding it another process may throw it away
            if (held := _hold(path)) is not None:
                now = time.time_ns()  # finer than the file system's own clock
                os.utime(path, ns=(now, now))  # its place among the recently taken ones
                return path, held
            with self._alone(f".lock-{sha256[:2]}"):  # one process fetches, the others wait for it
                if not path.exists():
                    self._fetch(path, size, sha256, where, fetch)
        raise Stopped("a shard does not stay in the cache", where=path, fix=f"raise {LIMIT}")

    def _fetch(self, path: Path, size: int, sha256: str, where: str, fetch: Callable[[Path], object]) -> None:
        with ExitStack() as until_renamed, files.new_file(path, durable=False) as part:
            with self._alone(".lock"):
                reserved = until_renamed.enter_context(open(part, "wb"))
                fcntl.flock(reserved, fcntl.LOCK_EX)
                self._make_room(path, where)  # from now on this one is counted, by its name
            try:
                fetch(part)
            except Exception as error:  # each file system has its own
                raise Refused(
                    "a shard cannot be fetched", where=where, got=f"{type(error).__name__}: {error}"
                ) from error
            with open(part, "rb") as file:
                got, digest = part.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
            if (got, digest) != (size, sha256):
                raise Refused(
                    "a damaged shard", where=where, got=f"{got} bytes with sha256 {digest[:16]}...",
                    expected=f"{size} bytes with {sha256[:16]}...", fix="copy it again from where the store was made",
                )  # fmt: skip

    def _make_room(self, wanted: Path, where: str) -> None:
        size = _size(wanted)
        known: dict[str, tuple[Path, int]] = {}  # by name: a part may become a file in the meantime
        for pattern in (f"{files.PART}*", "*.safetensors"):
            for path in self.folder.glob(pattern):
                with suppress(FileNotFoundError):
                    known["-".join(path.name.split("-")[-2:])] = path, path.stat().st_mtime_ns
        known.pop(wanted.name)  # the part that is to be filled
        held = sum(_size(path) for path, _ in known.values())
        for path, _ in sorted(known.values(), key=lambda pair: pair[1]):
            if held + size <= self.limit:
                return
            held -= _size(path) if _throw_away(path) else 0
        if held + size > self.limit:
            raise Stopped(
                "the shards that are open leave no room in the cache", where=self.folder,
                got=f"{held} bytes, and {size} of {where}", expected=f"{self.limit} bytes together",
                fix=f"raise {LIMIT}, or read with fewer processes",
            )  # fmt: skip

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        with open(self.folder / name, "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _size(path: Path) -> int:
    """The size that a file of the cache has, or will have once it is fetched."""
    return int(path.stem.rpartition("-")[2])


def _hold(path: Path) -> Lease | None:
    """A lease on a file, or None when it is not there (any more)."""
    try:
        lease = Lease(path)
        same = os.path.samestat(path.stat(), os.fstat(lease.handle))
    except FileNotFoundError:
        return None
    return lease if same else None  # thrown away before the lock was there


def _throw_away(path: Path) -> bool:
    """Whether nobody held the file; then it is gone."""
    try:
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
            return True
    except (BlockingIOError, FileNotFoundError):
        return False


def _limit() -> int:
    text = os.environ.get(LIMIT) or "50"
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise Refused("not a size for the cache", where=LIMIT, got=repr(text), expected="gigabytes, more than 0")
    return int(limit * 1e9)
