"""Arrow: each row of a column of arrays is a map. IPC files and streams, and Hugging Face datasets (extra ``parquet``).

A dataset saved by ``Dataset.save_to_disk`` is a folder: ``state.json`` lists its IPC streams, whose rows are numbered
together.
"""

from __future__ import annotations

import json
import os
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import is_remote
from async_maps.sources.formats.columns import DAMAGED, Column, Table
from async_maps.sources.formats.ipc import IpcFile
from async_maps.sources.formats.registry import suffix_of, translate_format_errors

if TYPE_CHECKING:
    from typing import BinaryIO

    import pyarrow as pa

    from async_maps.filesystems.filesystem import Filesystem

_STATE = "state.json"
_BLOCK_BYTES = 2**20
"""Smaller rows are read together with the next ones."""
_MAX_STATE = 16 * 2**20


class ArrowReader(Table):
    """Reads the rows of a column, whose name is the part."""

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        self._filesystem = filesystem
        is_folder = suffix_of(path) is None if is_remote(path) else os.path.isdir(path)
        self._paths = _streams(path, filesystem) if is_folder else [path]
        # The first row of each stream, as far as they are known.
        self._starts = array("q", [0])
        self._most_rows = 0
        self._number = -1
        self._file: BinaryIO | None = None
        self._row_bytes: dict[str, int] = {}
        self._block: tuple[str, int, pa.Array] | None = None
        try:
            super().__init__(self._open(0).schema)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def count(self) -> int:
        while len(self._starts) <= len(self._paths):
            self._open_next()
        return self._starts[-1]

    def most_rows(self) -> int:
        return self._most_rows

    def row_bytes(self, column: Column) -> int:
        if column.name not in self._row_bytes:
            ipc = self._open(0)
            with translate_format_errors(DAMAGED):
                self._row_bytes[column.name] = ipc.row_bytes(self._index(column.name))
        return self._row_bytes[column.name]

    def load(self, column: str, row: int, count: int, most: int | None = None) -> pa.Array:
        while row >= self._starts[-1]:
            if len(self._starts) > len(self._paths):
                raise SourceError(f"the table has no row {row:,} anymore: it has {self._starts[-1]:,} rows")
            self._open_next()
        number = bisect_right(self._starts, row) - 1
        ipc = self._open(number)
        with translate_format_errors(DAMAGED):
            return ipc.load(self._index(column), row - self._starts[number], count, most)

    def load_row(self, column: Column, index: int, max_pixels: int | None) -> pa.Array:
        # Small rows are read together with the next ones.
        if self._block is not None:
            name, start, block = self._block
            if name == column.name and start <= index < start + len(block):
                return block.slice(index - start, 1)
            self._block = None
        rows = _BLOCK_BYTES // max(self.row_bytes(column), 1)
        if rows > 1:
            try:
                block = self.load(column.name, index, rows, _BLOCK_BYTES)
            except SourceError:
                # One of the rows is damaged or larger than the others.
                pass
            else:
                self._block = column.name, index, block
                return block.slice(0, 1)
        return self.load(column.name, index, 1, max_pixels)

    def _open_next(self) -> None:
        """Count the rows of the first stream that was not yet read."""
        ipc = self._open(len(self._starts) - 1)
        with translate_format_errors(DAMAGED):
            self._starts.append(self._starts[-1] + ipc.count())
            self._most_rows += ipc.most_rows

    def _open(self, number: int) -> IpcFile:
        """Open a stream, in place of the one that is open."""
        if number != self._number:
            self.close()
            self._number, self._file = -1, self._filesystem.open(self._paths[number])
            with translate_format_errors("expected an Arrow IPC file or stream"):
                self._ipc = IpcFile(self._file)
            self._number = number
        return self._ipc

    def _index(self, column: str) -> int:
        index: int = self._ipc.schema.get_field_index(column)
        if index < 0:
            raise SourceError(f"the file has no column {column!r} anymore, or two")
        return index


def _streams(folder: str, filesystem: Filesystem) -> list[str]:
    """Return the paths of the streams of a dataset, in the order of their rows."""
    with filesystem.open(f"{folder}/{_STATE}") as file:
        text = file.read(_MAX_STATE)
    try:
        state = json.loads(text)
        names = [entry["filename"] for entry in state["_data_files"]]
        indices = state.get("_indices_data_files") or state.get("_indices_files")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise SourceError(f"expected a Hugging Face dataset: its {_STATE} lists no files") from None
    if indices:
        raise SourceError("an old version of datasets saved it with a table of indices: load it, and save it again")
    if not names or not all(
        isinstance(name, str) and name and name not in {".", ".."} and "/" not in name for name in names
    ):
        raise SourceError(f"expected a Hugging Face dataset: its {_STATE} lists files outside of its folder, or none")
    return [f"{folder}/{name}" for name in names]
