"""Where a store is: a folder of this machine, or any URL that fsspec knows (s3://, gs://, hf://, memory://, ...)."""

import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mmdit.errors import Refused
from mmdit.latents.cache import Lease, ShardCache
from mmdit.latents.layout import META, SHARDS, check_size


class Shard(NamedTuple):
    """A shard's file on this machine. A fetched one stays there for as long as `lease` is held."""

    path: Path
    lease: Lease | None = None


class Place(Protocol):
    """What reading a store takes of the place where it is."""

    open_shards: int
    """Shards that one process keeps open."""

    def __str__(self) -> str: ...
    def found(self) -> str:
        """What there is, in words, where store.json is missing."""

    def meta(self) -> bytes | None:
        """The content of store.json."""

    def where(self, name: str) -> str:
        """The address of a file, for messages."""

    def table(self, name: str) -> Any:
        """What pyarrow reads a table from."""

    def shard(self, facts: dict[str, Any]) -> Shard:
        """The file of a shard, of the size that `facts` (its row of shards.parquet) says."""


class Folder:
    """A store in a folder of this machine."""

    open_shards = 128

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def found(self) -> str:
        if (self.folder / SHARDS).is_dir():
            return "an unfinished one"
        return "none" if self.folder.exists() else "no such folder"

    def meta(self) -> bytes | None:
        path = self.folder / META
        return path.read_bytes() if path.is_file() else None

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def table(self, name: str) -> str:
        return str(self.folder / name)

    def shard(self, facts: dict[str, Any]) -> Shard:
        path = self.folder / SHARDS / facts["name"]
        check_size(path, facts["bytes"])
        return Shard(path)


class Remote:
    """A store at a URL. Tables are read in place, by parts; shards are fetched whole into the cache."""

    open_shards = 4  # each holds room in the cache

    def __init__(self, url: str, cache: ShardCache) -> None:
        import fsspec

        self.url, self.cache = url.rstrip("/"), cache
        try:
            self.files, self.path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError, OSError) as error:
            raise Refused("the store's URL cannot be opened", where=url, got=error) from None
        self.path = self.path.rstrip("/")

    def __str__(self) -> str:
        return self.url

    def found(self) -> str:
        return "an unfinished one" if self.files.isdir(f"{self.path}/{SHARDS}") else "none"

    def meta(self) -> bytes | None:
        try:
            return self.files.cat_file(f"{self.path}/{META}")
        except FileNotFoundError:
            return None
        except Exception as error:  # each file system has its own
            raise Refused(
                "the store cannot be reached", where=self.url, got=f"{type(error).__name__}: {error}"
            ) from None

    def where(self, name: str) -> str:
        return f"{self.url}/{name}"

    def table(self, name: str) -> Any:
        import fsspec

        files, _ = fsspec.core.url_to_fs(self.url)  # after a fork this is a new one
        return files.open(f"{self.path}/{name}", "rb")

    def shard(self, facts: dict[str, Any]) -> Shard:
        import fsspec

        files, _ = fsspec.core.url_to_fs(self.url)
        name = f"{SHARDS}/{facts['name']}"
        path, lease = self.cache.take(
            facts["bytes"], facts["sha256"], self.where(name),
            lambda target: files.get_file(f"{self.path}/{name}", str(target)),
        )  # fmt: skip
        return Shard(path, lease)


def place_of(folder_or_url: str | os.PathLike[str], cache: ShardCache | None = None) -> Place:
    """The place that a user names. `cache` is where shards of a URL are kept; None: the default one."""
    name = os.fspath(folder_or_url)
    return Remote(name, cache or ShardCache()) if "://" in name else Folder(Path(name))
