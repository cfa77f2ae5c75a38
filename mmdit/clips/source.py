"""Finding the clips of a folder: which videos there are, and what is known about each."""

import csv
import io
import math
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mmdit.errors import Refused

_VIDEO_NAMES = "3gp avi flv gif m2ts m4v mkv mov mp4 mpeg mpg ogv ts webm wmv"
VIDEO_SUFFIXES = frozenset(f".{name}" for name in _VIDEO_NAMES.split())
CAPTIONS = "captions.csv"
OWN_COLUMNS = ("path", "caption", "label", "split", "start", "end")
DEFAULT_SPLIT = "train"


@dataclass(frozen=True)
class SourceClip:
    """A span of one source video, and what is known about it.

    `path` is relative to the folder, with forward slashes. `start` and `end` are seconds from the first frame of the
    video; None is its beginning and its end. `attributes` are the further columns of captions.csv.
    """

    path: str
    caption: str | None = None
    label: str | None = None
    split: str = DEFAULT_SPLIT
    attributes: dict[str, str] = field(default_factory=dict)
    start: float | None = None
    end: float | None = None


def find_clips(root: str | os.PathLike[str], captions: str | os.PathLike[str] | None = None) -> list[SourceClip]:
    """The clips of a folder, sorted by path and start.

    A table `captions` (by default `captions.csv` in the folder, when it is there) lists them: the columns path,
    caption, label, split, start, end are known, all but path may be missing, any other column is an attribute. Empty
    cells are unknown. Without a table, every video file below the folder is one clip, and the text of NAME.txt beside
    NAME.mp4 is its caption; hidden files and folders (`.name`) are left out. A listed file that does not exist is kept:
    reading it fails then, and it is counted among the skipped ones.

    Raises:
        Refused: the folder is missing or has no video, a row is bad (named by file and line), a text is not UTF-8, or a
            path does not lead to a regular file below the folder.
    """
    root = Path(root)
    if not root.is_dir():
        raise Refused("no such folder of videos", where=root, fix="name a folder with video files")
    table = Path(captions) if captions is not None else root / CAPTIONS
    if captions is not None and not table.is_file():
        raise Refused("no such captions file", where=table, fix="name a CSV file with a column 'path'")
    clips = list(_listed(root, table) if table.is_file() else _walked(root))
    if not clips:
        raise Refused(
            "no videos",
            where=table if table.is_file() else root,
            got="0 clips",
            expected="at least one",
            fix="known endings are " + " ".join(sorted(VIDEO_SUFFIXES)),
        )
    return sorted(clips, key=lambda clip: (clip.path, clip.start or 0.0, clip.end or math.inf))


def _read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Refused(
            "the text is not UTF-8",
            where=f"{path}, line {line}",
            got=f"byte 0x{data[error.start]:02x}",
            fix="save the file as UTF-8",
        ) from None


def _listed(root: Path, table: Path) -> Iterator[SourceClip]:
    text = _read_text(table)
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    seen: dict[tuple[str, float | None, float | None], int] = {}
    try:
        for cells in rows:
            line = rows.line_num
            if not header:
                header = _header(cells, table)
            elif cells:
                clip = _row(root, header, cells, f"{table}, line {line}")
                key = (clip.path, clip.start, clip.end)
                if key in seen:
                    raise Refused(
                        "the same span of the same video twice",
                        where=f"{table}, lines {seen[key]} and {line}",
                        got=clip.path,
                        expected="one line for each",
                        fix="remove one of them",
                    )
                seen[key] = line
                yield clip
    except csv.Error as error:
        raise Refused(f"not a CSV file ({error})", where=f"{table}, line {rows.line_num}") from None


def _header(cells: list[str], table: Path) -> list[str]:
    names = [cell.strip() for cell in cells]
    if "path" not in names:
        raise Refused("no column 'path'", where=table, got=", ".join(names), expected="path, caption, label, ...")
    if "" in names or len(set(names)) < len(names):
        raise Refused("columns without a name of their own", where=table, got=", ".join(map(repr, names)))
    return names


def _row(root: Path, header: list[str], values: list[str], where: str) -> SourceClip:
    if len(values) != len(header):
        raise Refused(
            "a row of another length than the header",
            where=where,
            got=f"{len(values)} cells",
            expected=f"{len(header)}",
            fix='put "..." around texts with commas',
        )
    cells = dict(zip(header, values, strict=True))
    if any("\0" in cell for cell in cells.values()):
        raise Refused("a NUL character", where=where)
    start, end = _seconds(cells, "start", where), _seconds(cells, "end", where)
    if end is not None and end <= (start or 0.0):
        raise Refused("an empty span", where=where, got=f"start {start or 0.0:g}, end {end:g}", expected="start < end")
    return SourceClip(
        path=_below(root, cells["path"], where),
        caption=cells.get("caption", "").strip() or None,
        label=cells.get("label", "").strip() or None,
        split=cells.get("split", "").strip() or DEFAULT_SPLIT,
        attributes={name: cell for name, cell in cells.items() if name not in OWN_COLUMNS},
        start=start,
        end=end,
    )


def _seconds(cells: dict[str, str], name: str, where: str) -> float | None:
    text = cells.get(name, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise Refused(f"bad {name}", where=where, got=repr(text), expected="seconds, 0 or more")
    return value


def _below(root: Path, text: str, where: str) -> str:
    """The relative path, when it cannot lead to anything but a regular file below the root."""
    relative = Path(text)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or ":" in relative.parts[0]:
        raise Refused("bad path", where=where, got=repr(text), expected=f"a file below {root}, relative to it")
    _check_regular(root, root / relative, where)
    return relative.as_posix()


def _check_inside(root: Path, path: Path, where: object) -> None:
    if not (target := path.resolve()).is_relative_to(root.resolve()):
        raise Refused("a link that leads out of the folder", where=where, got=target, fix="copy what it leads to")


def _check_regular(root: Path, path: Path, where: object) -> None:
    _check_inside(root, path, where)
    try:
        mode = path.stat().st_mode
    except OSError:
        return  # missing or unreadable: found, and counted, when it is read
    if not stat.S_ISREG(mode):
        raise Refused("not a regular file", where=where, got=path)


def _walked(root: Path) -> Iterator[SourceClip]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (path := Path(folder, name)).is_symlink():
                _check_inside(root, path, path)
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix.lower() not in VIDEO_SUFFIXES or name.startswith("."):
                continue
            try:
                relative = path.relative_to(root).as_posix()
                relative.encode()
            except UnicodeEncodeError:
                raise Refused("a file name that is not UTF-8", where=repr(str(path)), fix="rename the file") from None
            _check_regular(root, path, path)
            yield SourceClip(path=relative, caption=_sidecar(path))


def _sidecar(path: Path) -> str | None:
    text = path.with_suffix(".txt")
    if not text.is_file():
        return None
    caption = _read_text(text).strip()
    if "\0" in caption:
        raise Refused("a NUL character", where=text)
    return caption or None
