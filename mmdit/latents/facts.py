"""What is known of each source: the hash of its bytes, and what its header says. Kept, so that it is found out once."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from mmdit import files
from mmdit.clips.decode import BadClip
from mmdit.clips.part import Part
from mmdit.clips.probe import Probed, ProbeRequest
from mmdit.clips.reader import ClipReader
from mmdit.clips.source import SourceClip

FACTS = "sources.parquet"
_ROWS = pyarrow.schema(
    [
        ("path", pyarrow.string()), ("file", pyarrow.string()), ("offset", pyarrow.int64()),
        ("bytes", pyarrow.int64()), ("modified", pyarrow.int64()),
        ("sha256", pyarrow.string()), ("kind", pyarrow.string()), ("duration", pyarrow.float64()),
        ("frames", pyarrow.int64()), ("fps", pyarrow.float64()), ("height", pyarrow.int32()),
        ("width", pyarrow.int32()), ("reason", pyarrow.string()),
    ]
)  # fmt: skip
NOT_HASHED = "-" * 64
_AT_A_TIME = 1 << 20  # bytes read for a hash


@dataclass(frozen=True)
class Facts:
    """What is known of one source. Equal size and time of change are taken for equal bytes."""

    bytes: int
    modified: int
    """Nanoseconds, as the file system has it."""
    sha256: str
    """Of the bytes; for a file that cannot be read, why not."""
    probed: Probed | None = None
    reason: str | None = None
    """Why it could not be probed."""
    part: Part | None = None
    """Where in which file it lies, if it is not a file of its own."""

    @property
    def readable(self) -> bool:
        return len(self.sha256) == 64


def find_facts(
    root: Path,
    clips: Iterable[SourceClip],
    known: dict[str, Facts],
    reader: ClipReader | None,
    *,
    hashed: bool = True,
) -> dict[str, Facts]:
    """The facts of all sources of the clips, by path; what `known` has of unchanged files is taken from there.

    Args:
        reader: probes those that were not probed yet; None where that is not needed.
        hashed: whether their bytes are read for the hash; without it, no id can be made of the facts.
    """
    parts = {clip.path: clip.part for clip in clips}
    with ThreadPoolExecutor(max_workers=4) as pool:
        looked = pool.map(lambda path: _look(root, path, parts[path], known.get(path), hashed), parts)
        found = dict(zip(parts, looked, strict=True))
    if reader is not None:
        new = [path for path, facts in found.items() if facts.readable and not (facts.probed or facts.reason)]
        answers = reader.read_many(_probe(root, path, parts[path]) for path in new)
        for path, answer in zip(new, answers, strict=True):
            facts = found[path]
            probed, reason = (None, answer.reason) if isinstance(answer, BadClip) else (answer, None)
            found[path] = replace(facts, probed=probed, reason=reason)
    return found


def sizes_of(facts: dict[str, Facts]) -> list[tuple[int, int]]:
    """(height, width) of every source that could be probed."""
    return [known.probed.size for known in facts.values() if known.probed is not None]


def where_of(root: Path, path: str, part: Part | None) -> tuple[Path, int, int | None]:
    """The file that holds a source, and the bytes of it: (file, offset, length); length None: all of it."""
    return (root / path, 0, None) if part is None else (root / part.file, part.offset, part.size)


def _probe(root: Path, path: str, part: Part | None) -> ProbeRequest:
    file, offset, length = where_of(root, path, part)
    return ProbeRequest(str(file.absolute()), offset, length)


def _look(root: Path, path: str, part: Part | None, known: Facts | None, hashed: bool) -> Facts:
    file, offset, length = where_of(root, path, part)
    try:
        state = os.stat(file)
        size = state.st_size if length is None else length
        if known is not None and (known.bytes, known.modified) == (size, state.st_mtime_ns) and known.readable:
            return replace(known, part=part)
        if not hashed:
            return Facts(size, state.st_mtime_ns, NOT_HASHED, part=part)
        digest = hashlib.sha256()
        with open(file, "rb") as handle:
            handle.seek(offset)
            left = size
            while left > 0 and (data := handle.read(min(_AT_A_TIME, left))):
                digest.update(data)
                left -= len(data)
        return Facts(size, state.st_mtime_ns, digest.hexdigest(), part=part)
    except OSError as error:  # reading the clip finds it out too, and counts it
        return Facts(0, 0, f"{file.name}: {error.strerror}", part=part)


def read_facts(folder: Path) -> dict[str, Facts]:
    """Those of a store, by path; none where there are none."""
    if not (folder / FACTS).is_file():
        return {}
    return {row["path"]: _of_row(row) for row in pyarrow.parquet.read_table(folder / FACTS).to_pylist()}


def write_facts(folder: Path, facts: dict[str, Facts]) -> None:
    files.write_parquet(folder / FACTS, pyarrow.Table.from_pylist([_row(*item) for item in facts.items()], _ROWS))


def _row(path: str, facts: Facts) -> dict[str, Any]:
    row: dict[str, Any] = {"path": path, "bytes": facts.bytes, "modified": facts.modified, "sha256": facts.sha256}
    if facts.part is not None:
        row |= {"file": facts.part.file, "offset": facts.part.offset}
    if (probed := facts.probed) is not None:
        height, width = probed.size
        row |= {"kind": probed.kind, "duration": probed.duration, "frames": probed.frames, "fps": probed.fps}
        row |= {"height": height, "width": width}
    return row | {"reason": facts.reason}


def _of_row(row: dict[str, Any]) -> Facts:
    probed = None
    if row["kind"] is not None:
        size = (row["height"], row["width"])
        probed = Probed(row["kind"], row["duration"], row["frames"], row["fps"], size)
    part = Part(row["file"], row["offset"], row["bytes"]) if row.get("file") is not None else None
    return Facts(row["bytes"], row["modified"], row["sha256"], probed, row["reason"], part)
