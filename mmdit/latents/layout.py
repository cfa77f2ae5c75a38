"""The files of a latent store by name, and how its store.json is read. What they hold: `mmdit.latents.store`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmdit.errors import Refused

FORMAT = 2
META, INDEX, SHARD_TABLE, QUARANTINE, SHARDS = (
    "store.json", "index.parquet", "shards.parquet", "quarantine.parquet", "shards",
)  # fmt: skip
FIX = "run `mmdit verify --fix` on the store"
AGAIN = "remove store.json there and run the same `mmdit encode` command again"


@dataclass(frozen=True)
class Group:
    """Clips of one split and one shape: a range of rows. `latent` is (channel, frame, height, width)."""

    split: str
    frames: int
    height: int
    width: int
    latent: tuple[int, int, int, int]
    first: int
    count: int

    @property
    def rows(self) -> range:
        return range(self.first, self.first + self.count)


def shard_paths(folder: Path, number: int) -> tuple[Path, Path]:
    """The latents and the rows of one shard."""
    return folder / SHARDS / f"{number:05d}.safetensors", folder / SHARDS / f"{number:05d}.parquet"


def read_meta(folder: Path) -> dict[str, Any] | None:
    """store.json, or None when there is none.

    Raises:
        Refused: it is damaged, or of a newer format than this version of mmdit reads.
    """
    path = folder / META
    return parse_meta(path.read_bytes(), path) if path.is_file() else None


def parse_meta(data: bytes, where: str | Path) -> dict[str, Any]:
    """The content of store.json; refuses as `read_meta` does."""
    try:
        meta: dict[str, Any] = json.loads(data)
        version = int(meta["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise Refused("not a store's store.json", where=where, got=f"{type(error).__name__}: {error}") from None
    check_format(version, where)
    return meta


def check_format(version: int, where: str | Path) -> None:
    """Refuses what a newer mmdit wrote."""
    if version > FORMAT:
        raise Refused(
            "written by a newer mmdit", where=where, got=f"store format {version}", expected=f"at most {FORMAT}",
            fix="update mmdit",
        )  # fmt: skip


def check_size(path: Path, expected: int, where: str | Path | None = None) -> None:
    """Refuses a file that is missing or has another size than recorded."""
    size = path.stat().st_size if path.is_file() else None
    if size != expected:
        raise Refused(
            "a damaged store", where=where or path, got="no file" if size is None else f"{size} bytes",
            expected=f"{expected} bytes", fix=FIX,
        )  # fmt: skip
