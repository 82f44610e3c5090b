"""Parquet: each row of a column of arrays is a map (extra ``parquet``).

A row group can have gigabytes, so it is decoded in batches, and the last batch is kept. To read a row, the rows of its
group before it are decoded; a worker reads ascending rows, and decodes each group at most once.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from contextlib import contextmanager
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from async_maps.errors import SourceError, require_extra
from async_maps.sources.formats.columns import COMPRESSION, DAMAGED, ROWS_PER_BYTE, Column, Table
from async_maps.sources.formats.registry import close_on_error, translate_format_errors

with require_extra("reading Parquet and Arrow", "parquet"):
    import pyarrow as pa
    import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.filesystems.filesystem import Filesystem

_BATCH_BYTES = 8 * 2**20
"""Rows of together this size are decoded in one batch."""
_BATCH_ROWS = 4096
_SMALL_FILE = 64 * 2**20
_BUFFER_BYTES = 2**20
"""The size of a read in larger files, of which pyarrow would read the whole column of a row group. In a small file it
is not used, because pyarrow then allocates the size that a page claims before it reads the page."""


class ParquetReader(Table):
    """Reads the rows of a column, whose name is the part."""

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as self._file, translate_format_errors("expected a Parquet file"):
            self._size = self._file.seek(0, os.SEEK_END)
            buffer_size = 0 if self._size <= _SMALL_FILE else _BUFFER_BYTES
            self._parquet = pq.ParquetFile(self._file, buffer_size=buffer_size, pre_buffer=False)
            metadata = self._parquet.metadata
            sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
            if min(sizes, default=0) < 0 or sum(sizes) != metadata.num_rows:
                raise SourceError("the file is damaged: its row groups do not have the rows that its footer promises")
            super().__init__(self._parquet.schema_arrow)
        self._starts = [0, *accumulate(sizes)]
        # The column and the row group of the batches; the last batch, its first row, and that of the next batch.
        self._source: tuple[str, int] | None = None
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.Array | None = None
        self._first = self._next = 0
        # The size of a row of a column in bytes, the largest mean of all batches so far.
        self._sizes: dict[str, int] = {}

    def close(self) -> None:
        self._batches, self._batch = iter(()), None
        self._file.close()

    def count(self) -> int:
        return int(self._starts[-1])

    def most_rows(self) -> int:
        return self._size * ROWS_PER_BYTE * COMPRESSION

    def row_bytes(self, column: Column) -> int:
        if column.name not in self._sizes and self.count():
            self.load(column.name, 0, 1)
        return self._sizes.get(column.name, 0)

    def load(self, column: str, row: int, count: int) -> pa.Array:
        if not 0 <= row < self.count():
            raise SourceError(f"the table has no row {row:,} anymore: it has {self.count():,} rows")
        group = bisect_right(self._starts, row) - 1
        with translate_format_errors(DAMAGED), _translate_limits():
            if self._source != (column, group) or row < self._first:
                self._start(column, group)
            while row >= self._next:
                # Free the old batch before the next one is decoded, to save memory.
                self._batch = None
                self._first, batch = self._next, next(self._batches, None)
                if batch is None:
                    raise SourceError(f"the file is damaged: its row group {group:,} ends before row {row:,}")
                self._next += len(batch)
                self._batch = batch.column(column)
                self._sizes[column] = max(self._sizes[column], _mean(self._batch))
        assert self._batch is not None  # noqa: S101  # it has the row
        return self._batch.slice(row - self._first, count)

    def load_row(self, column: Column, index: int, max_pixels: int | None) -> pa.Array:
        if column.name not in self._sizes and (size := column.row_bytes) is not None:
            self._sizes[column.name] = size
        return self.load(column.name, index, 1)

    def _start(self, column: str, group: int) -> None:
        """Start to decode a column of a row group."""
        self._source = self._batch = None
        if column not in self._sizes:
            # The sizes in the metadata are those of encoded values, and pyarrow aborts if some of them are damaged.
            self._decode(column, group, 1)
            self._sizes[column] = max((_mean(batch.column(column)) for batch in islice(self._batches, 1)), default=0)
        rows = _BATCH_BYTES // max(self._sizes[column], 1)
        self._decode(column, group, min(max(rows, 1), _BATCH_ROWS))
        self._source, self._first, self._next = (column, group), self._starts[group], self._starts[group]

    def _decode(self, column: str, group: int, rows: int) -> None:
        self._batches = self._parquet.iter_batches(rows, row_groups=[group], columns=[column], use_threads=False)


@contextmanager
def _translate_limits() -> Iterator[None]:
    """Do not call a file damaged that only this version of pyarrow cannot read."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if isinstance(error, pa.ArrowInvalid) and "Expected all lists to be of size" not in str(error):
            raise
        reason = str(error).partition("\n")[0][:200]
        raise SourceError(f"pyarrow {pa.__version__} cannot read this column; a newer one may: {reason}") from error


def _mean(rows: pa.Array) -> int:
    return int(rows.nbytes) // max(len(rows), 1)
