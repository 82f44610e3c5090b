"""The metadata of Arrow's IPC format: messages, and which arrays and buffers a record batch has."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from pyarrow import types

from async_maps.sources.formats.columns import is_view, stored_type

if TYPE_CHECKING:
    from typing import Any

    import pyarrow as pa
    from numpy.typing import NDArray


class Table:
    """A table of FlatBuffers, the encoding of Arrow's metadata; a field is found by its number."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self._position = data, position
        self._fields = position - self._number("<i", position)
        self._end = self._number("<H", self._fields)

    def number(self, field: int, kind: str) -> int:
        """Return a number; 0 if the field is absent."""
        at = self._at(field)
        return self._number(kind, at) if at else 0

    def table(self, field: int) -> Table | None:
        """Return a table; None if the field is absent."""
        at = self._at(field)
        return Table(self._data, at + self._number("<I", at)) if at else None

    def numbers(self, field: int, width: int) -> NDArray[np.int64]:
        """Return a vector of structs of ``width`` integers, (n, width); empty if the field is absent."""
        at = self._at(field)
        if not at:
            return np.empty((0, width), np.int64)
        at += self._number("<I", at)
        return np.frombuffer(self._data, "<i8", self._number("<I", at) * width, at + 4).reshape(-1, width)

    def _at(self, field: int) -> int:
        slot = 4 + 2 * field
        offset = self._number("<H", self._fields + slot) if slot + 2 <= self._end else 0
        return self._position + offset if offset else 0

    def _number(self, kind: str, position: int) -> int:
        if position < 0:
            raise ValueError("an offset is negative")
        return int(struct.unpack_from(kind, self._data, position)[0])


class Message(NamedTuple):
    """A message: its kind and content, its metadata, and the offsets of its body and of the next message."""

    kind: int
    content: Table
    metadata: bytes
    body: int
    end: int


class Batch(NamedTuple):
    """A record batch: for each array the length and the number of nulls, for each buffer the offset and the length."""

    rows: int
    arrays: NDArray[np.int64]
    buffers: NDArray[np.int64]
    codec: str | None
    variadic: NDArray[np.int64]


class Cursor:
    """A position in the arrays and buffers of a batch, which are listed depth-first."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._array = self.buffer = self._view = 0

    def next_array(self) -> tuple[int, int]:
        """Return the length and the number of nulls of the next array."""
        self._array += 1
        length, nulls = self._batch.arrays[self._array - 1].tolist()
        return length, nulls

    def next_buffer(self) -> int:
        """Return the number of the next buffer."""
        self.buffer += 1
        return self.buffer - 1

    def next_texts(self) -> range:
        """Return the numbers of the next buffers, which contain the texts of a column of views."""
        self._view += 1
        first, count = self.buffer, int(self._batch.variadic[self._view - 1])
        self.buffer += count
        return range(first, first + count)

    def skip(self, kind: pa.DataType) -> None:
        """Move behind an array and its children."""
        kind = stored_type(kind)
        self._array += 1
        self.buffer += _buffers(kind)
        if is_view(kind):
            self.next_texts()
        if types.is_run_end_encoded(kind):
            self.skip(kind.run_end_type)
            self.skip(kind.value_type)
        elif kind.num_fields:
            for position in range(kind.num_fields):
                self.skip(kind.field(position).type)


def _buffers(kind: pa.DataType) -> int:
    """Return the number of buffers of an array, without those of its children and the texts of views."""
    if types.is_null(kind) or types.is_run_end_encoded(kind):
        return 0
    if types.is_struct(kind) or types.is_fixed_size_list(kind) or (types.is_union(kind) and kind.mode == "sparse"):
        return 1
    texts = not kind.num_fields and offset_type(kind) is not None
    return 3 if texts or types.is_list_view(kind) or types.is_large_list_view(kind) else 2


def offset_type(kind: pa.DataType) -> np.dtype[Any] | None:
    """Return the dtype of the offsets of lists, texts and bytes; None for other types."""
    if types.is_list(kind) or types.is_string(kind) or types.is_binary(kind):
        return np.dtype("<i4")
    if types.is_large_list(kind) or types.is_large_string(kind) or types.is_large_binary(kind):
        return np.dtype("<i8")
    return None
