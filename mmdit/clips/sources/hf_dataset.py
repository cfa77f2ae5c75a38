"""Clips of a data set that the library `datasets` saved with `save_to_disk`; the library itself is not needed.

Such a folder holds Arrow streams (*.arrow) that state.json lists, and dataset_info.json with the features of the
columns; one with several splits has dataset_dict.json and such a folder for each.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from mmdit.clips.part import Part
from mmdit.clips.sources.arrow import spans_of, values_of
from mmdit.clips.sources.checks import Paths, check_text, read_text, shown
from mmdit.clips.sources.clip import DEFAULT_SPLIT, SourceClip
from mmdit.clips.sources.row import Rows
from mmdit.clips.sources.table import read_object
from mmdit.errors import Refused

STATE, INFO, SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of an Arrow stream
_OTHER_MEDIA = ("Video", "Image", "Audio", "Pdf")


@dataclass(frozen=True)
class _Split:
    name: str
    files: list[str]
    types: dict[str, str]
    """Column to the name of its feature."""
    classes: list[str] | None
    """The names of the ClassLabel `label`."""


def is_dataset(folder: Path) -> bool:
    return (folder / SPLITS).is_file() or ((folder / STATE).is_file() and (folder / INFO).is_file())


def dataset_labels(paths: Paths) -> list[str] | None:
    """The names of the ClassLabel `label`, in the order of their numbers; None where labels are of another kind."""
    first, *others = _splits(paths)
    for split in others:
        if split.classes != first.classes:
            raise Refused("splits with other labels each", where=paths.folder, got=f"{first.name} and {split.name}")
    return first.classes


def dataset_clips(paths: Paths, rows: Rows) -> Iterator[SourceClip]:
    """The rows of a saved data set: one column is of Video or Image, `caption` or `text` and `label` are known.

    So are `start`, `end` and `split`; other columns are attributes, but for further media and bytes, which are counted
    as left out. Videos that lie in the Arrow files are read in place; others are files below the folder. The number -1
    of a ClassLabel is no label. A clip's path is ARROW_FILE/ROW, rows from 1.

    Raises:
        Refused: a folder or file that is not whole, no or more than one column of videos, or a bad row.
    """
    for split in _splits(paths):
        media = _media_column(split, rows, paths.folder)
        for file in split.files:
            place = paths.folder / file
            try:
                yield from _file_clips(file, paths, rows, split, media)
            except Refused:
                raise
            except (pyarrow.ArrowException, OSError, ValueError, KeyError) as error:
                raise Refused(
                    "an Arrow file that is damaged or cannot be read", where=place, got=error,
                    fix="save the data set again",
                ) from None  # fmt: skip


def _splits(paths: Paths) -> list[_Split]:
    place = paths.folder
    try:
        if not (paths.folder / SPLITS).is_file():
            return [_split("", "", paths)]
        names = _json(paths.folder / SPLITS)["splits"]
        return [_split(paths.below(f"{name}/{STATE}", str(place)).removesuffix(STATE), name, paths) for name in names]
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise Refused("a damaged data set", where=place, got=f"{type(error).__name__} {error}") from None


def _split(prefix: str, name: str, paths: Paths) -> _Split:
    state, features = _json(paths.folder / prefix / STATE), _json(paths.folder / prefix / INFO)["features"]
    where = str(paths.folder / prefix / STATE)
    return _Split(
        name=name or state.get("_split") or DEFAULT_SPLIT,
        files=[paths.below(prefix + file["filename"], where) for file in state["_data_files"]],
        types={column: str(feature.get("_type")) for column, feature in features.items() if isinstance(feature, dict)},
        classes=[check_text(text, where) for text in features["label"]["names"]]
        if features.get("label", {}).get("_type") == "ClassLabel"
        else None,
    )


def _json(path: Path) -> dict[str, Any]:
    return read_object(check_text(read_text(path), str(path)), str(path))


def _media_column(split: _Split, rows: Rows, where: Path) -> str:
    types = {"all": ("Video", "Image"), "video": ("Video",), "image": ("Image",)}[rows.rules.media]
    found = [name for name, kind in split.types.items() if kind in types]
    if len(found) != 1:
        raise Refused(
            "not one column of videos or images", where=where, got=", ".join(found) or f"none of {' or '.join(types)}",
            expected="one column of Video or Image", fix="take the videos only, or the images only" if found else None,
        )  # fmt: skip
    return found[0]


def _file_clips(file: str, paths: Paths, rows: Rows, split: _Split, media: str) -> Iterator[SourceClip]:
    place, number = paths.folder / file, 0
    with pyarrow.memory_map(str(place)) as mapped:
        whole = mapped.read_buffer()
        if whole.size < len(_END) or whole.slice(whole.size - len(_END)).to_pybytes() != _END:
            raise Refused("an Arrow file that is cut short", where=place, fix="save the data set again")
        for batch in pyarrow.ipc.open_stream(whole):
            spans, names = spans_of(batch.column(media), whole, place)
            columns = _columns(batch, media, split, rows, place)
            for span, name, *cells in zip(spans, names, *columns.values(), strict=True):
                number += 1
                where = f"{place}, row {number}"
                if span is None and not name:
                    rows.notes.add("rows without a video or image", where)
                    continue
                if span is not None:
                    suffix = os.path.splitext(name or "")[1].lower()
                    path, part = f"{file}/{number:06d}{check_text(suffix, where)}", Part(file, *span)
                else:
                    below = str(name).removeprefix(f"{paths.folder.resolve()}/")
                    path, part = paths.below(below, where), None
                values = dict(zip(columns, cells, strict=True))
                if split.classes is not None:
                    values["label"] = _class_name(split.classes, values.get("label"), where)
                values["split"] = values.get("split") or split.name
                clip = rows.clip(path, values, where, part)
                if clip is not None:
                    yield clip


def _columns(batch: Any, media: str, split: _Split, rows: Rows, place: Path) -> dict[str, list[Any]]:
    """The values of the columns of text and numbers, by what they are called here."""
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        if name != media and (split.types.get(name) in _OTHER_MEDIA or pyarrow.types.is_binary(column.type)):
            rows.notes.add(f"column {name} left out", str(place))
        elif name != media:
            columns[name] = values_of(column, place)
    if "caption" not in columns and "text" in columns:
        columns["caption"] = columns.pop("text")
    return columns


def _class_name(classes: list[str], number: int | None, where: str) -> str | None:
    if number is None or number == -1:
        return None
    if not 0 <= number < len(classes):
        raise Refused("a label out of range", where=where, got=shown(number), expected=f"0 to {len(classes) - 1}")
    return classes[number]
