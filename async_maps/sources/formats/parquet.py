"""Parquet: each row of a column of arrays is a map (extra ``parquet``).

A row group can have gigabytes, so it is decoded in batches, and the last batch is kept. To read a row, the rows of its
group before it are decoded; a worker reads ascending rows, and decodes each group at most once.
"""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from async_maps.errors import SourceError, require_extra
from async_maps.sources.formats.columns import DAMAGED, Column, Table
from async_maps.sources.formats.registry import close_on_error, translate_format_errors

with require_extra("reading Parquet and Arrow", "parquet"):
    import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pyarrow as pa

    from async_maps.filesystems.filesystem import Filesystem

_BATCH_BYTES = 8 * 2**20
"""Rows of together this size are decoded in one batch."""
_BATCH_ROWS = 4096
_WIDEST = 8
"""The bytes of the widest number in a column."""
_BUFFER_BYTES = 2**20
"""The size of a read; without it, pyarrow reads the whole column of a row group."""


class ParquetReader(Table):
    """Reads the rows of a column, whose name is the part."""

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as self._file, translate_format_errors("expected a Parquet file"):
            self._parquet = pq.ParquetFile(self._file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
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

    def close(self) -> None:
        self._batches, self._batch = iter(()), None
        self._file.close()

    def count(self) -> int:
        return int(self._starts[-1])

    def row_bytes(self, column: Column) -> int:
        itemsize = 0 if column.dtype is None else column.dtype.itemsize
        groups = range(len(self._starts) - 1)
        with translate_format_errors(DAMAGED):
            return max((self._row_bytes(column.name, group, itemsize) for group in groups), default=0)

    def load(self, column: str, row: int, count: int) -> pa.Array:
        if not 0 <= row < self.count():
            raise SourceError(f"the table has no row {row:,} anymore: it has {self.count():,} rows")
        group = bisect_right(self._starts, row) - 1
        with translate_format_errors(DAMAGED):
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
        assert self._batch is not None  # noqa: S101  # it has the row
        return self._batch.slice(row - self._first, count)

    def load_row(self, column: Column, index: int, max_pixels: int | None) -> pa.Array:
        return self.load(column.name, index, 1)

    def _start(self, column: str, group: int) -> None:
        """Start to decode a column of a row group."""
        self._source = self._batch = None
        rows = _BATCH_BYTES // max(self._row_bytes(column, group, _WIDEST), 1)
        self._batches = self._parquet.iter_batches(
            min(max(rows, 1), _BATCH_ROWS), row_groups=[group], columns=[column], use_threads=False
        )
        self._source, self._first, self._next = (column, group), self._starts[group], self._starts[group]

    def _row_bytes(self, column: str, group: int, itemsize: int) -> int:
        """Return the mean size of a row in a row group in bytes, if its values are not bytes themselves."""
        schema, metadata = self._parquet.schema, self._parquet.metadata.row_group(group)
        paths = (schema.column(number).path for number in range(len(schema)))
        leaves = [number for number, path in enumerate(paths) if path == column or path.startswith(f"{column}.")]
        size = 0
        for leaf in map(metadata.column, leaves):
            size += leaf.num_values * itemsize if itemsize else leaf.total_uncompressed_size
        return int(max(size, 0) // max(metadata.num_rows, 1))
