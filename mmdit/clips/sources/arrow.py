"""Columns of Arrow: their values, and where in a file its bytes lie."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute

from mmdit.errors import Refused


def is_text(column: Any) -> bool:
    return pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)


def values_of(column: Any, place: Path) -> list[Any]:
    """The values of a column, after a look whether it is sound; lone surrogates stand for what is not UTF-8."""
    data = column.cast(pyarrow.large_binary()) if is_text(column) else column
    data.validate(full=True)
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        if data is column:
            raise Refused("the text is not UTF-8", where=place, got=f"a column of type {column.type}") from None
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in data.to_pylist()]


def spans_of(column: Any, whole: Any, place: Path) -> tuple[list[tuple[int, int] | None], list[str | None]]:
    """What a column of Video or Image holds: offset and size of the bytes of each row, or None, and the paths.

    `column` was read from the buffer `whole`, a mapped Arrow stream: the address of its bytes is that in the file.

    Raises:
        Refused: a column of another type, or bytes that do not lie in the file as they are (compressed).
    """
    if not pyarrow.types.is_struct(column.type) or {field.name for field in column.type} != {"bytes", "path"}:
        raise Refused("not a column of Video or Image", where=place, got=column.type, expected="bytes and path")
    data = column.field("bytes")
    data.validate(full=True)
    _, offsets, values = data.buffers()
    width = np.int64 if pyarrow.types.is_large_binary(data.type) else np.int32
    begins = np.frombuffer(offsets, width)[data.offset :][: len(data) + 1].tolist() if len(data) else [0]
    base = values.address - whole.address if values is not None and values.size else 0
    if base < 0 or base + begins[-1] > whole.size:
        raise Refused(
            "a compressed Arrow file", where=place, expected="videos that can be read in place",
            fix="save the data set again, without compression",
        )  # fmt: skip
    there = pyarrow.compute.and_(data.is_valid(), column.is_valid()).to_pylist()
    spans = [
        (base + begin, end - begin) if valid else None
        for begin, end, valid in zip(begins, begins[1:], there, strict=False)
    ]
    return spans, values_of(column.field("path"), place)
