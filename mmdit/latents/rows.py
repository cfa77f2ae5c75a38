"""A Parquet file as rows: any of them is read without reading the others."""

import io
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow
import pyarrow.parquet

from mmdit.errors import Refused
from mmdit.latents.layout import AGAIN

ROW_GROUP = 1 << 16
"""Rows that are written, and read, together."""
_CACHE_BYTES = 256 << 20


class Rows:
    """The rows of a Parquet file, by number. Opening reads its footer; what is read of it later is kept for a while.

    Args:
        source: gives what pyarrow is to read: a path, a buffer or a file. It is called again in a forked process.
        where: the file's address, for messages.

    Raises:
        Refused: from any method, where the file is damaged.
    """

    def __init__(self, source: Callable[[], Any], where: str) -> None:
        self._source, self._where = source, where
        with self._reading():
            self._open()
        metadata = self._file.metadata
        self._firsts = [0]
        for group in range(metadata.num_row_groups):
            self._firsts.append(self._firsts[-1] + metadata.row_group(group).num_rows)
        self.names: list[str] = self._file.schema_arrow.names

    @classmethod
    def of_table(cls, table: pyarrow.Table) -> "Rows":
        """A table in memory as rows."""
        buffer = io.BytesIO()
        pyarrow.parquet.write_table(table, buffer)
        data = pyarrow.py_buffer(buffer.getvalue())
        return cls(lambda: pyarrow.BufferReader(data), "memory")

    def _open(self) -> None:
        source = self._source()
        self._file = pyarrow.parquet.ParquetFile(
            source, memory_map=isinstance(source, str), page_checksum_verification=True
        )
        self._owner = os.getpid()
        self._parts: OrderedDict[tuple[int, tuple[str, ...] | None], pyarrow.Table] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return self._firsts[-1]

    def row(self, number: int) -> dict[str, Any]:
        """One row by column name."""
        part, place = self.part(number)
        return part.slice(place, 1).to_pylist()[0]

    def column(self, name: str, first: int = 0, count: int | None = None) -> pyarrow.ChunkedArray:
        """`count` values of a column (None: all that follow) from row `first` on."""
        end = len(self) if count is None else min(first + count, len(self))
        if not (0 <= first <= end and name in self.names):
            raise IndexError(f"no rows {first} to {end} of a column {name!r} in {len(self)} rows of {self.names}")
        groups = range(self._group(first), self._group(end - 1) + 1) if first < end else range(0)
        file = self._here()
        with self._reading():
            values = file.read_row_groups(list(groups), columns=[name], use_threads=False)[name]
        return values.slice(first - self._firsts[groups.start], end - first) if groups else values

    def table(self) -> pyarrow.Table:
        """All rows."""
        return pyarrow.table({name: self.column(name) for name in self.names})

    def part(self, number: int, columns: tuple[str, ...] | None = None) -> tuple[pyarrow.Table, int]:
        """These columns (None: all) of the row group that a row is in, and the row's place in it."""
        if not 0 <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        file, group = self._here(), self._group(number)
        key = (group, columns)
        if key not in self._parts:
            with self._reading():
                part = file.read_row_group(group, columns=columns and list(columns), use_threads=False)
            self._parts[key] = part
            self._bytes += self._parts[key].nbytes
            while self._bytes > _CACHE_BYTES and len(self._parts) > 1:
                self._bytes -= self._parts.popitem(last=False)[1].nbytes
        self._parts.move_to_end(key)
        return self._parts[key], number - self._firsts[group]

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are among them
            what = f"{type(error).__name__}: {error}"
            raise Refused("a damaged store", where=self._where, got=what, fix=AGAIN) from None

    def _group(self, number: int) -> int:
        return bisect_right(self._firsts, number) - 1

    def _here(self) -> pyarrow.parquet.ParquetFile:
        if self._owner != os.getpid():  # forked: the parent's handles are the parent's
            self._open()
        return self._file
