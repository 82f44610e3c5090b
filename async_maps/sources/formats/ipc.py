"""Arrow's IPC format: record batches are found by their metadata, and rows are read one by one (extra ``parquet``).

The library pyarrow reads whole record batches, which can have gigabytes, or maps the file into memory, so that a
truncation during a read kills the process. This module reads only the bytes of the rows that are wanted, from any
seekable file. A stream is a sequence of messages; a file is a stream between two magic numbers, before a footer. The
names are those of Arrow's "Columnar Format".
"""

from __future__ import annotations

import os
import struct
from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from pyarrow import types

from async_maps.errors import SourceError
from async_maps.sources.formats.columns import COMPRESSION, ROWS_PER_BYTE, is_view, stored_type
from async_maps.sources.formats.ipc_metadata import Batch, Cursor, Message, Table, offset_type

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

_FILE_MAGIC, _FILE_END = b"ARROW1\0\0", b"ARROW1"
_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_CODECS = {0: "lz4", 1: "zstd"}
_MAX_METADATA = 100 * 2**20
_MAX_UNPACKED = 256 * 2**20
"""The most bytes of a column in a compressed record batch, which is unpacked completely."""
_MAX_TEXT = 64 * 2**20
"""The most bytes of the names, or of the file in a row, that are read together."""
_INLINE = 12
"""The length up to which a view contains its text."""


class IpcFile:
    """The record batches of one IPC file or stream. The bytes are not trusted.

    Raises:
        SourceError: the constructor and all methods raise it if the file is damaged; damage can also raise ValueError,
            LookupError, struct.error or an error of pyarrow.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = file.seek(0, os.SEEK_END)
        if self._read(0, min(len(_FILE_MAGIC), self._size)) == _FILE_MAGIC:
            schema = self._open_file()
        else:
            schema = self._open_stream()
        if schema.number(0, "<h"):
            raise SourceError("its numbers are big-endian: write the file on a little-endian machine")
        self._kinds = [field.type for field in self.schema]
        # The first row and the offset of each batch, as far as they are known.
        self._rows, self._places = array("q", [0]), array("q")
        self.most_rows = self._size * ROWS_PER_BYTE
        self._current = -1
        self._batch: Batch
        self._unpacked: dict[int, bytes] = {}

    def count(self) -> int:
        """Return the number of rows; reads the metadata of all batches."""
        while self._find_batch():
            pass
        return self._rows[-1]

    def load(self, column: int, row: int, count: int = 1, most: int | None = None) -> pa.Array:
        """Read up to ``count`` rows of a column; fewer if their batch ends.

        A row of more than ``most`` values is refused before they are read.
        """
        while row >= self._rows[-1]:
            if not self._find_batch():
                raise SourceError(f"the table has no row {row:,} anymore: it has {self._rows[-1]:,} rows")
        number = bisect_right(self._rows, row) - 1
        self._open_batch(number)
        start = row - self._rows[number]
        return self._load(self._kinds[column], self._cursor(column), start, min(start + count, self._batch.rows), most)

    def row_bytes(self, column: int) -> int:
        """Return the bytes of a column in the first record batch, divided by its rows."""
        if len(self._rows) == 1 and not self._find_batch():
            return 0
        self._open_batch(0)
        buffers = range(self._cursor(column).buffer, self._cursor(column + 1).buffer)
        return sum(map(self._length, buffers)) // self._batch.rows

    def _open_file(self) -> Table:
        """Read the footer of a file, which lists its record batches; return the schema."""
        tail = 4 + len(_FILE_END)
        end = self._read(max(self._size - tail, 0), min(tail, self._size))
        length = int.from_bytes(end[:4], "little")
        if end[4:] != _FILE_END or length > min(self._size, _MAX_METADATA):
            raise SourceError(f"truncated: an Arrow file ends with its footer and {_FILE_END.decode()}")
        data = self._read(self._size - tail - length, length)
        footer = Table(data, int.from_bytes(data[:4], "little"))
        # Each block is an offset, the length of the metadata and that of the body.
        self._messages = self._in_file(footer.numbers(3, 3)[:, 0])
        self._file.seek(0)
        self.schema: pa.Schema = pa.ipc.open_file(self._file).schema
        schema = footer.table(1)
        assert schema is not None  # noqa: S101  # pyarrow has read it
        return schema

    def _open_stream(self) -> Table:
        """Read the schema message of a stream; return the schema."""
        message = self._message(0)
        if message is None or message.kind != _SCHEMA:
            raise SourceError("expected an Arrow IPC file or stream, found no schema at its start")
        self._messages = self._in_stream(message.end)
        self.schema = pa.ipc.read_schema(pa.py_buffer(self._read(0, message.body)))
        return message.content

    def _in_file(self, places: NDArray[np.int64]) -> Iterator[tuple[int, Message | None]]:
        return ((int(place), self._message(int(place))) for place in places)

    def _in_stream(self, place: int) -> Iterator[tuple[int, Message]]:
        while (message := self._message(place)) is not None:
            yield place, message
            place = message.end

    def _find_batch(self) -> bool:
        """Find the next record batch; return whether there is one."""
        for place, message in self._messages:
            # Dictionaries are the categories of other columns.
            if message is not None and message.kind == _DICTIONARY:
                continue
            rows = message.content.number(0, "<q") if message is not None and message.kind == _BATCH else -1
            if rows < 0:
                raise SourceError(f"the file is damaged at byte {place:,}: expected a record batch")
            if rows:
                if message is not None and message.content.table(3) is not None:
                    self.most_rows = self._size * ROWS_PER_BYTE * COMPRESSION
                self._places.append(place)
                self._rows.append(self._rows[-1] + rows)
                return True
        return False

    def _message(self, place: int) -> Message | None:
        """Return the message at an offset; None at the end of the stream."""
        if place == self._size:
            return None
        size, start = int.from_bytes(self._read(place, 4), "little"), place + 4
        # Before Arrow 0.15, a message began with its size.
        if size == _CONTINUATION:
            size, start = int.from_bytes(self._read(place + 4, 4), "little"), place + 8
        if size == 0:
            return None
        if size > min(self._size, _MAX_METADATA):
            raise SourceError(f"expected an Arrow IPC file or stream, found no message at byte {place:,}")
        metadata = self._read(start, size)
        root = Table(metadata, int.from_bytes(metadata[:4], "little"))
        content, length = root.table(2), root.number(3, "<q")
        if content is None or length < 0:
            raise SourceError(f"the file is damaged: the message at byte {place:,} has no content")
        body, end = start + size, start + size + length
        if end > self._size:
            raise SourceError(f"truncated: a record batch ends at byte {end:,}, but the file at byte {self._size:,}")
        return Message(root.number(1, "<B"), content, metadata, body, end)

    def _open_batch(self, number: int) -> None:
        if number == self._current:
            return
        self._unpacked, self._current = {}, -1
        message = self._message(self._places[number])
        assert message is not None  # noqa: S101  # it was found before
        content, compression, length = message.content, message.content.table(3), message.end - message.body
        buffers = content.numbers(2, 2)
        if (buffers < 0).any() or (buffers > length).any() or (buffers.sum(axis=1) > length).any():
            raise SourceError("the file is damaged: a buffer is outside of its record batch")
        self._batch = Batch(
            self._rows[number + 1] - self._rows[number],
            content.numbers(1, 2),
            buffers + np.array([message.body, 0]),
            None if compression is None else _CODECS[compression.number(0, "<b")],
            content.numbers(4, 1)[:, 0],
        )
        self._current = number

    def _cursor(self, column: int) -> Cursor:
        at = Cursor(self._batch)
        for kind in self._kinds[:column]:
            at.skip(kind)
        return at

    def _load(self, kind: pa.DataType, at: Cursor, start: int, stop: int, most: int | None) -> pa.Array:
        kind, count = stored_type(kind), stop - start
        length, nulls = at.next_array()
        if not 0 <= start <= stop <= length:
            raise SourceError(f"the file is damaged: it refers to the values {start:,} to {stop:,} of {length:,}")
        if most is not None and count > most:
            raise SourceError(
                f"too large: the row has {count:,} or more values, and max_pixels allows {most:,} pixels: scale it "
                "down, or raise max_pixels"
            )
        if types.is_dictionary(kind):
            raise SourceError(f"a column has the type {kind}, which is not read from Arrow files: cast it to text")
        validity = at.next_buffer()
        buffers = [self._bits(validity, start, stop) if nulls and count else None]
        children: list[pa.Array] = []
        if types.is_fixed_size_list(kind):
            children = [self._load(kind.value_type, at, start * kind.list_size, stop * kind.list_size, most)]
        elif types.is_struct(kind):
            children = [self._load(part.type, at, start, stop, most) for part in kind]
        elif is_view(kind):
            return self._load_views(kind, at, start, stop, buffers[0])
        elif offset := offset_type(kind):
            offsets = self._offsets(at.next_buffer(), start, stop, offset)
            first, last = int(offsets[0]), int(offsets[-1])
            buffers.append(pa.py_buffer(offsets - offsets[0]))
            if kind.num_fields:
                children = [self._load(kind.value_type, at, first, last, most)]
            else:
                buffers.append(pa.py_buffer(self._text(at.next_buffer(), first, last - first)))
        elif types.is_boolean(kind):
            buffers.append(self._bits(at.next_buffer(), start, stop))
        else:
            width = kind.bit_width // 8
            buffers.append(pa.py_buffer(self._bytes(at.next_buffer(), start * width, count * width)))
        return pa.Array.from_buffers(kind, count, buffers, children=children or None)

    def _load_views(self, kind: pa.DataType, at: Cursor, start: int, stop: int, validity: pa.Buffer | None) -> pa.Array:
        views = self._bytes(at.next_buffer(), 16 * start, 16 * (stop - start))
        texts = at.next_texts()
        valid = pa.Array.from_buffers(pa.bool_(), stop - start, [None, validity]).to_pylist() if validity else None
        values: list[bytes | None] = []
        left = _MAX_TEXT
        for row in range(stop - start):
            length, _, buffer, offset = struct.unpack_from("<iiii", views, 16 * row)
            if valid is not None and not valid[row]:
                values.append(None)
            elif length <= _INLINE:
                values.append(views[16 * row + 4 : 16 * row + 4 + length])
            else:
                # Any number of views can refer to the same text.
                values.append(self._text(texts[buffer], offset, length, left))
                left -= length
        return pa.array(values, pa.large_binary()).cast(
            pa.large_string() if "string" in str(kind) else pa.large_binary()
        )

    def _offsets(self, buffer: int, start: int, stop: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        if start == stop:
            return np.zeros(1, dtype)
        offsets = np.frombuffer(self._bytes(buffer, start * dtype.itemsize, (stop - start + 1) * dtype.itemsize), dtype)
        if offsets[0] < 0 or (offsets[1:] < offsets[:-1]).any():
            raise SourceError("the file is damaged: the offsets of its lists decrease")
        return offsets

    def _bits(self, buffer: int, start: int, stop: int) -> pa.Buffer:
        """Read bits, such as the validity of values, as a buffer that begins with the first one."""
        first = start // 8
        data = np.frombuffer(self._bytes(buffer, first, -(-stop // 8) - first), np.uint8)
        bits = np.unpackbits(data, bitorder="little")[start - 8 * first : stop - 8 * first]
        return pa.py_buffer(np.packbits(bits, bitorder="little"))

    def _text(self, buffer: int, start: int, length: int, left: int = _MAX_TEXT) -> bytes:
        if length > left:
            raise SourceError(
                f"too large: the names or the files in some rows have together more than {_MAX_TEXT:,} bytes"
            )
        return self._bytes(buffer, start, length)

    def _bytes(self, buffer: int, start: int, length: int) -> bytes:
        if length == 0:
            return b""
        if min(start, length) < 0 or start + length > self._length(buffer):
            raise SourceError("the file is damaged: a buffer of a record batch is too short")
        if self._batch.codec is None:
            return self._read(int(self._batch.buffers[buffer, 0]) + start, length)
        return self._unpack(buffer, self._batch.codec)[start : start + length]

    def _length(self, buffer: int) -> int:
        """Return the bytes of a buffer when it is unpacked."""
        place, length = self._batch.buffers[buffer].tolist()
        if self._batch.codec is None or length == 0:
            return int(length)
        unpacked = int.from_bytes(self._read(place, 8), "little", signed=True)
        return int(length) - 8 if unpacked == -1 else unpacked

    def _unpack(self, buffer: int, codec: str) -> bytes:
        """Return a compressed buffer unpacked, and keep it for the next rows."""
        if buffer not in self._unpacked:
            place, length = self._batch.buffers[buffer].tolist()
            expected = self._length(buffer)
            if sum(map(len, self._unpacked.values())) + expected > _MAX_UNPACKED:
                raise SourceError(
                    f"too large: a column of a compressed record batch has {expected:,} or more bytes, and is unpacked "
                    f"completely, at most {_MAX_UNPACKED:,}: write fewer rows per batch, for instance "
                    "pyarrow.feather.write_feather(table, path, chunksize=1000)"
                )
            data = self._read(place + 8, length - 8)
            if self._read(place, 8) != b"\xff" * 8:
                with pa.CompressedInputStream(pa.BufferReader(data), codec) as stream:
                    data = stream.read(expected)
            if len(data) != expected:
                raise SourceError("the file is damaged: a compressed buffer has the wrong length")
            self._unpacked[buffer] = data
        return self._unpacked[buffer]

    def _read(self, start: int, length: int) -> bytes:
        if min(start, length) < 0:
            raise SourceError("the file is damaged: an offset or a length is negative")
        self._file.seek(start)
        data = self._file.read(length)
        if len(data) < length:
            raise SourceError(f"truncated: it ends at byte {start + len(data):,}, and {start + length:,} are expected")
        return data
