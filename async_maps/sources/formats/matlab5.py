"""MATLAB's ``.mat`` files of the versions 5, 6 and 7, as ``save`` and SciPy's ``savemat`` write them.

SciPy is not used: its ``loadmat`` unpacks a whole variable. Here, the maps of a stack are read one by one.
"""

from __future__ import annotations

import math
import os
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps.errors import SourceError
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.names import NAMES, paths_of_names
from async_maps.sources.formats.registry import ListedArray, PassedOver, close_on_error, translate_format_errors
from async_maps.sources.formats.size import DEFLATE_RATIO, MAX_DIMENSIONS, check_size
from async_maps.sources.formats.stacks import BELOW_TWO_DIMENSIONS, OBJECTS, TEXT, position_names, shape_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO, Any, TypeAlias

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem

    _Stream: TypeAlias = "_Plain | _Inflated"

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CELL, _STRUCT, _CHAR, _SPARSE = 1, 2, 4, 5
_NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_COMPLEX, _LOGICAL = 8, 2
COMPLEX = "its values are complex numbers: save their abs()"
EMPTY = "empty arrays"
_CONTAINERS = {_CELL, _STRUCT}
_ENCODINGS = {1: "latin-1", 2: "latin-1", 16: "utf-8"}
"""The encoding of text by the type of its data; all other text is UTF-16."""
_MAX_TEXT = 2**20
_MAX_NAMES = 64 * 2**20
_MAX_DEPTH = 30
_PIECE = 2**20
_PACKED_PIECE = 2**16


class _Matrix(NamedTuple):
    """The header of an array.

    Attributes:
        name: empty in a struct or a cell.
        kind: the number of its class.
        flags: whether it is complex or logical.
        shape: as in MATLAB.
        end: the offset of its end in the stream.
    """

    name: str
    kind: int
    flags: int
    shape: tuple[int, ...]
    end: int


class _Values(NamedTuple):
    """The values of an array: their shape in C order, the dtype in the file and in MATLAB, and their offset."""

    shape: tuple[int, ...]
    stored: np.dtype[Any]
    dtype: np.dtype[Any]
    start: int


class Matlab5Reader:
    """Reads the arrays of numbers of a file, also those in structs and cells.

    The part of an array is the offset of its variable in the file, and its own offset in the unpacked variable.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as self._file:
            self._size = self._file.seek(0, os.SEEK_END)
            self._file.seek(0)
            header = self._file.read(_HEADER)
            if len(header) < _HEADER or header[126:] not in {b"IM", b"MI"}:
                raise SourceError("expected a MATLAB file of version 5 to 7.3: save it with -v7 or -v7.3")
            self._order: Any = "little" if header[126:] == b"IM" else "big"
        self._part: list[int] | None = None
        self._stream: _Stream = _Plain(self._file, 0, 0)
        self._values: _Values | None = None
        # The number of names in each array that can name maps.
        self._lengths: dict[str, int] | None = None

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        is_empty = True
        for path, matrix, stream, part in self._matrices():
            is_empty = False
            if matrix.kind in _NUMBERS:
                yield self._listed(stream, matrix, path, part)
            elif matrix.kind == _CHAR:
                yield PassedOver(TEXT)
            elif matrix.kind == _SPARSE:
                yield PassedOver("sparse arrays")
            elif matrix.kind not in _CONTAINERS:
                yield PassedOver(OBJECTS)
        if is_empty:
            raise SourceError("the file contains no variable")

    def names(self, array: ListedArray, length: int) -> Iterable[str] | None:
        """Return the strings in a cell array or in the rows of a char array, which is beside an array."""
        if self._lengths is None:
            # Once for all arrays, because a struct is unpacked to find its fields.
            self._lengths = {
                path: math.prod(matrix.shape) if matrix.kind == _CELL else matrix.shape[0]
                for path, matrix, _, _ in self._matrices()
                if matrix.kind in {_CELL, _CHAR} and path.rpartition("/")[2] in NAMES
            }
        found = (path for path in paths_of_names(array.name) if self._lengths.get(path) == length)
        path = next(found, None)
        return None if path is None else self._texts(path)

    def read(self, part: list[int], index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        start, at = part
        with translate_format_errors(f"the file is damaged after byte {start:,}"):
            if self._values is None or part != self._part:
                self._stream = self._variable(start)
                self._stream.skip(at)
                matrix = self._matrix(self._stream)
                if matrix.flags & _COMPLEX:
                    raise SourceError(COMPLEX)
                self._values, self._part = self._numbers(self._stream, matrix), part
            values, first = self._values, self._values.start
            shape = rows_first(values.shape)
            if index is not None:
                shape = shape_at("the array", shape, index)
                first += index * math.prod(shape) * values.stored.itemsize
            check_size(shape, max(values.stored.itemsize, values.dtype.itemsize), max_pixels)
            if first < self._stream.position:
                self._stream = self._variable(start)
            self._stream.skip(first - self._stream.position)
            stored = np.empty(math.prod(shape), values.stored)
            self._stream.read_into(stored.view(np.uint8))
            with np.errstate(invalid="ignore", over="ignore"):  # signaling NaNs, and values beyond the class
                read = stored != 0 if values.dtype == np.bool_ else stored.astype(values.dtype, copy=False)
            return read.reshape(values.shape if index is None else values.shape[1:]).swapaxes(-1, -2).reshape(shape)

    def close(self) -> None:
        self._file.close()

    def _variable(self, start: int) -> _Stream:
        """Return the bytes of a variable, positioned at its array."""
        self._file.seek(start)
        tag = self._file.read(8)
        kind, size = self._integer(tag[:4]), self._integer(tag[4:])
        end = start + 8 + size
        if len(tag) < 8 or end > self._size:
            raise SourceError(f"truncated: a variable ends at byte {end:,}, but the file at byte {self._size:,}")
        if kind == _COMPRESSED:
            return _Inflated(self._file, start + 8, end)
        if kind != _MATRIX:
            raise SourceError(f"the file is damaged after byte {start:,}: expected a variable")
        return _Plain(self._file, start, end)

    def _matrices(self) -> Iterator[tuple[str, _Matrix, _Stream, list[int]]]:
        """Yield the path, the header and the part of each array, and the stream behind the header."""
        start = _HEADER
        while start < self._size:
            with translate_format_errors(f"the file is damaged after byte {start:,}"):
                stream = self._variable(start)
                yield from self._walk(stream, start, None, stream.limit)
            start = stream.end

    def _walk(
        self, stream: _Stream, start: int, path: str | None, limit: int, depth: int = 0
    ) -> Iterator[tuple[str, _Matrix, _Stream, list[int]]]:
        """Yield an array, which ends at ``limit`` or before, and the arrays in it."""
        at = stream.position
        matrix = self._matrix(stream)
        if matrix.end > limit:
            raise SourceError("expected an array")
        path = matrix.name if path is None else path
        yield path, matrix, stream, [start, at]
        if matrix.kind in _CONTAINERS and depth < _MAX_DEPTH:
            for name in self._children(stream, matrix):
                yield from self._walk(stream, start, f"{path}/{name}", matrix.end, depth + 1)
        if depth:
            stream.skip(matrix.end - stream.position)

    def _texts(self, path: str) -> Iterator[str]:
        with translate_format_errors(f"the file is damaged at {path!r}"):
            for found, matrix, stream, _ in self._matrices():
                if matrix.kind == _CHAR and (found == path or found.startswith(f"{path}/")):
                    kind, size, _ = self._tag(stream)
                    if size > _MAX_NAMES:
                        raise SourceError(f"the names in {found!r} have {size:,} bytes, which is too long")
                    content = bytearray(size)
                    stream.read_into(memoryview(content))
                    text = content.decode(_ENCODINGS.get(kind, f"utf-16-{self._order[0]}e"))
                    # An empty text has no rows.
                    rows = max(1, matrix.shape[0])
                    if rows > max(1, len(text)):
                        raise SourceError(f"expected {rows:,} rows of text, found {len(text):,} characters")
                    for row in range(rows):
                        yield text[row::rows].rstrip()

    def _children(self, stream: _Stream, matrix: _Matrix) -> Iterator[str]:
        """Yield the name of each array in a cell or a struct, when the stream is at that array."""
        count = math.prod(matrix.shape)
        fields = [""]
        if matrix.kind == _STRUCT:
            width = self._integer(self._text(stream))
            names = self._text(stream)
            fields = [_decoded(names[first : first + width]) for first in range(0, len(names), width)]
            count = count if fields else 0
        for position in position_names(count):
            if stream.position >= matrix.end:
                # An empty array claims to have more values than the file has bytes.
                return
            for field in fields:
                yield "/".join(filter(None, (field, "" if field and count == 1 else position)))

    def _listed(self, stream: _Stream, matrix: _Matrix, path: str, part: list[int]) -> ListedArray | PassedOver:
        if 0 in matrix.shape:
            return PassedOver(EMPTY)
        if is_vector(matrix.shape):
            return PassedOver(BELOW_TWO_DIMENSIONS)
        values = self._numbers(stream, matrix)
        size = math.prod(values.shape) * values.dtype.itemsize
        if matrix.flags & _COMPLEX:
            return ListedArray(path, part, size, None, COMPLEX)
        return ListedArray(path, part, size, ArrayHeader(rows_first(values.shape), values.dtype), is_last_first=True)

    def _matrix(self, stream: _Stream) -> _Matrix:
        """Read the header of an array."""
        kind, size, _ = self._tag(stream)
        end = stream.position + size
        if kind != _MATRIX or end > stream.limit:
            raise SourceError("expected an array")
        if not size:
            # An empty cell.
            return _Matrix("", min(_NUMBERS), 0, (0, 0), end)
        flags = self._integer(self._text(stream)[:4])
        kind = flags & 0xFF
        if kind not in {*_NUMBERS, _CELL, _STRUCT, _CHAR, _SPARSE}:
            return _Matrix("", kind, 0, (), end)
        sizes = self._text(stream)
        shape = tuple(self._integer(sizes[first : first + 4]) for first in range(0, len(sizes), 4))
        if not 2 <= len(shape) <= MAX_DIMENSIONS:
            raise SourceError(f"expected an array of 2 to {MAX_DIMENSIONS} dimensions, found {len(shape):,}")
        return _Matrix(_decoded(self._text(stream)), kind, flags >> 8 & 0xFF, shape, end)

    def _numbers(self, stream: _Stream, matrix: _Matrix) -> _Values:
        """Return where the values are of the array whose header was read."""
        kind, size, _ = self._tag(stream)
        if matrix.kind not in _NUMBERS or kind not in _STORED:
            raise SourceError("expected an array of numbers")
        stored = np.dtype(_STORED[kind]).newbyteorder(self._order)
        if size != math.prod(matrix.shape) * stored.itemsize or stream.position + size > matrix.end:
            raise SourceError(f"expected the values of an array of the shape {matrix.shape}, found {size:,} bytes")
        dtype = np.dtype(np.bool_ if matrix.flags & _LOGICAL else _NUMBERS[matrix.kind])
        return _Values(matrix.shape[::-1], stored, dtype, stream.position)

    def _text(self, stream: _Stream) -> bytes:
        """Read a short element."""
        _, size, padding = self._tag(stream)
        if size > _MAX_TEXT:
            raise SourceError(f"expected a name or a shape, found {size:,} bytes")
        content = bytearray(size)
        stream.read_into(memoryview(content))
        stream.skip(padding)
        return bytes(content)

    def _tag(self, stream: _Stream) -> tuple[int, int, int]:
        """Return the type, the size and the padding of the element whose data follow."""
        word = bytearray(4)
        stream.read_into(memoryview(word))
        kind = self._integer(word)
        if size := kind >> 16:
            if size > 4:
                raise SourceError(f"a small element of {size:,} bytes")
            return kind & 0xFFFF, size, 4 - size
        stream.read_into(memoryview(word))
        size = self._integer(word)
        return kind, size, -size % 8

    def _integer(self, content: bytes | bytearray) -> int:
        return int.from_bytes(content, self._order)


def rows_first(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array of MATLAB, in C order, with its rows before its columns: (..., h, w)."""
    return (*shape[:-2], *shape[:-3:-1])


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether an array has fewer than two dimensions; in MATLAB its shape has sizes of 1 then."""
    return sum(size > 1 for size in shape) < 2


def _decoded(name: bytes) -> str:
    return name.partition(b"\0")[0].decode("utf-8", "surrogateescape")


class _Plain:
    """The bytes of a variable that is not compressed."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file, self._start, self.end = file, start, end
        self.position = 0
        self.limit = end - start

    def skip(self, size: int) -> None:
        self.position += size

    def read_into(self, buffer: Any) -> None:
        self._file.seek(self._start + self.position)
        if self.position + len(buffer) > self.limit or self._file.readinto(buffer) < len(buffer):  # type: ignore[attr-defined]
            raise SourceError("a variable is cut off")
        self.position += len(buffer)


class _Inflated:
    """The unpacked bytes of a compressed variable; ``limit`` is their maximum number."""

    def __init__(self, file: IO[bytes], start: int, end: int) -> None:
        self._file, self._next, self.end = file, start, end
        self._inflate = zlib.decompressobj()
        self.position = 0
        self.limit = (end - start) * DEFLATE_RATIO

    def skip(self, size: int) -> None:
        for _ in self._pieces(size):
            pass

    def read_into(self, buffer: Any) -> None:
        filled = 0
        for piece in self._pieces(len(buffer)):
            memoryview(buffer)[filled : filled + len(piece)] = piece
            filled += len(piece)

    def _pieces(self, size: int) -> Iterator[bytes]:
        while size > 0:
            packed = self._inflate.unconsumed_tail
            if not packed:
                self._file.seek(self._next)
                packed = self._file.read(min(_PACKED_PIECE, self.end - self._next))
                self._next += len(packed)
            try:
                piece = self._inflate.decompress(packed, min(size, _PIECE))
            except zlib.error as error:
                raise SourceError(f"the file is damaged before byte {self._next:,}: {error}") from error
            if not piece and not packed:
                raise SourceError("a variable is cut off")
            self.position += len(piece)
            size -= len(piece)
            yield piece
