"""NumPy's ``.npy``: each file is a map or a stack of maps."""

from __future__ import annotations

import math
import os
import sys
from functools import lru_cache
from io import BytesIO
from tokenize import TokenError
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from async_maps.errors import SourceError, translate_os_error
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.registry import ListedArray, translate_format_errors
from async_maps.sources.formats.size import check_size
from async_maps.sources.formats.stacks import shape_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.activation_map import Part


_MAGIC_BYTES = 8
"""What each file begins with: six letters and the version of the format."""
_DAMAGE = (
    ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, TokenError, RecursionError, MemoryError, Warning,
)  # fmt: skip
"""NumPy evaluates a header as a Python literal, so a damaged one can raise any of these. Some are warnings, which a
filter may turn into errors."""

_FORTRAN_STACK = (
    "the maps of a stack in Fortran order cannot be read one by one: save np.ascontiguousarray(stack) instead"
)
PIECE = 2**20
_SMALL = 2**18
_MAX_HEADER = 10_000
"""NumPy's limit for the header of an untrusted file, in bytes."""
_LONGEST_HEADER = _MAGIC_BYTES + 4 + _MAX_HEADER


class NpyReader:
    """Reads the only array of a file."""

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        self._file = filesystem.open(path)
        self._size = self._file.seek(0, os.SEEK_END)
        self._header: Header | None = None
        self._start = 0

    def arrays(self) -> Iterator[ListedArray]:
        self._file.seek(0)
        yield not_pickled(array_in_stream("", None, self._file, self._size))

    def names(self, array: ListedArray, length: int) -> None:
        return None

    def read(self, part: None, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        header, start = self._map_at(index, max_pixels)
        self._file.seek(start)
        return read_values(self._file, header)

    def find(self, part: None, index: int | None, max_pixels: int | None) -> NDArray[Any] | StoredArray:
        """Return an array like :meth:`read`, but without its values if it is so large that pieces are faster."""
        header, start = self._map_at(index, max_pixels)
        is_small = math.prod(header.shape) * header.dtype.itemsize <= _SMALL
        if not is_small and not header.fortran:
            return StoredArray(self._file, start, header.shape, header.dtype)
        self._file.seek(start)
        return read_values(self._file, header)

    def _map_at(self, index: int | None, max_pixels: int | None) -> tuple[Header, int]:
        """Return the header of an array, or of one map of a stack, and the offset of its values in the file."""
        if self._header is None:
            self._file.seek(0)
            header = read_header(self._file, self._size)
            self._header, self._start = header, self._file.tell()
        header, offset = map_at(self._header, index, max_pixels)
        return header, self._start + offset

    def close(self) -> None:
        self._file.close()


class StoredArray(NamedTuple):
    """An array in C order whose values are in a file, which stays open; :class:`~async_maps.render.quantize.Stored`.

    Reading raises the errors of :func:`read_values`. ``start`` is the offset of the values in the file.
    """

    file: IO[bytes]
    start: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def reshape(self, shape: tuple[int, ...]) -> StoredArray:
        """Return the array with another shape of the same size."""
        return self._replace(shape=shape)

    def pieces(self, count: int) -> Iterator[NDArray[Any]]:
        """Read the values in order, ``count`` at a time, (count,); each piece is valid until the next one is read."""
        self.file.seek(self.start)
        size = math.prod(self.shape)
        buffer = np.empty(min(count, size), self.dtype)
        for first in range(0, size, count):
            piece = buffer[: size - first]
            _fill(self.file, piece.view(np.uint8))
            yield piece

    def whole(self) -> NDArray[Any]:
        """Read all values."""
        return values_at(self.file, self.start, self.shape, self.dtype)


def _pickled(shape: tuple[int, ...]) -> str:
    load = 'numpy.load("FILE", allow_pickle=True)'
    pairs = f"{load}.item().items()" if not shape else f'((f"{{i:06}}", cam) for i, cam in enumerate({load}))'
    return (
        "expected an array of numbers, found pickled Python objects, which are never read: that would run code. "
        "If you trust the file: "
        f'import numpy, async_maps as am; am.run({pairs}, "DESTINATION")'
    )


class Header(NamedTuple):
    """The header of an ``.npy`` file; ``fortran`` is the order of the data."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def array_in_stream(name: str, part: Part, file: IO[bytes], size: int) -> ListedArray:
    """Return the array of an ``.npy`` file of ``size`` bytes, which is at its start.

    If its header cannot be read, reading the array raises the reason.
    """
    try:
        header = read_header(file, size)
    except SourceError as error:
        return ListedArray(name, part, size, None, str(error))
    return listed(name, part, header)


def listed(name: str, part: Part, header: Header) -> ListedArray:
    """Return the array with this header."""
    problem = _FORTRAN_STACK if _is_in_pieces(header) else ""
    array_bytes = math.prod(header.shape) * header.dtype.itemsize
    found = ArrayHeader(header.shape, header.dtype)
    return ListedArray(name, part, array_bytes, found, stack_problem=problem)


def not_pickled(array: ListedArray) -> ListedArray:
    """Return the only array of a file: pickled objects are a problem then, and not passed over as in an archive."""
    if array.header is None or not array.header.dtype.hasobject:
        return array
    return array._replace(header=None, problem=_pickled(array.header.shape))


def array_in_member(
    name: str, part: Part, size: int, open_member: Callable[[], IO[bytes]], damaged: str
) -> ListedArray:
    """Return the array of an ``.npy`` file in an archive.

    A damaged member has a problem, which starts with ``damaged``.
    """
    try:
        with translate_format_errors(damaged), open_member() as file:
            return array_in_stream(name, part, file, size)
    except (SourceError, OSError) as error:
        return ListedArray(name, part, size, None, translate_os_error(error))


def read_stream(
    file: IO[bytes], size: int, index: int | None = None, max_pixels: int | None = None, *, piece: int = PIECE
) -> NDArray[Any]:
    """Read the array, or one map of a stack, without unpickling.

    The header is checked against the file's ``size`` before memory is allocated, because a header of 200 bytes can
    claim a terabyte. One read has at most ``piece`` bytes, because a member of an archive copies each read; other files
    are read by one call, which for S3 is one request.

    Raises:
        SourceError: the file is not an ``.npy`` file, has pickled objects, is truncated, or is too large.
    """
    header, offset = map_at(read_header(file, size), index, max_pixels)
    file.seek(offset, os.SEEK_CUR)
    return read_values(file, header, piece)


def map_at(header: Header, index: int | None, max_pixels: int | None) -> tuple[Header, int]:
    """Return the header of an array, or of one map of a stack, and the number of bytes before its values.

    Raises:
        SourceError: it has pickled objects, is too large, or cannot be read alone.
    """
    offset = 0
    if header.dtype.hasobject:
        raise SourceError(_pickled(header.shape))
    if index is not None:
        shape = shape_at("the stack", header.shape, index)
        if _is_in_pieces(header):
            raise SourceError(_FORTRAN_STACK)
        offset = index * math.prod(shape) * header.dtype.itemsize
        header = header._replace(shape=shape)
    check_size(header.shape, header.dtype.itemsize, max_pixels)
    return header, offset


def read_values(file: IO[bytes], header: Header, piece: int = sys.maxsize) -> NDArray[Any]:
    """Read the values from a file that is positioned behind its header."""
    data = np.empty(math.prod(header.shape) * header.dtype.itemsize, np.uint8)
    _fill(file, data, piece)
    return data.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def _fill(file: IO[bytes], data: NDArray[np.uint8], piece: int = sys.maxsize) -> None:
    filled = 0
    while count := file.readinto(data.data[filled : filled + piece]):  # type: ignore[attr-defined]  # binary files have it
        filled += count
    if filled < data.size:
        raise SourceError("truncated while it was read")


def array_in_bytes(data: bytes | bytearray, max_pixels: int | None = None) -> NDArray[Any]:
    """Return the array of a whole ``.npy`` file without copying its values; for the errors see :func:`read_stream`."""
    file = BytesIO(data[:_LONGEST_HEADER])
    header, _ = map_at(read_header(file, len(data)), None, max_pixels)
    values = np.frombuffer(data, header.dtype, math.prod(header.shape), file.tell())
    return values.reshape(header.shape, order="F" if header.fortran else "C")


def values_at(file: IO[bytes], start: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Read an array in C order from an offset of a file, as :func:`read_values`."""
    file.seek(start)
    return read_values(file, Header(shape, fortran=False, dtype=dtype))


def _is_in_pieces(header: Header) -> bool:
    """Whether the values of one map of a stack are not side by side."""
    return header.fortran and header.shape[:1] > (1,)


def read_header(file: IO[bytes], size: int) -> Header:
    """Read the header of a file of ``size`` bytes; raise SourceError if it is none, or promises more data."""
    if size == 0:
        raise SourceError("expected an .npy file, found an empty one")
    if size < _MAGIC_BYTES:
        raise SourceError(f"expected an .npy file, found one of {size} bytes")
    try:
        shape, fortran, dtype = _parse_header(file)
    except _DAMAGE as error:
        # Only the first line: NumPy adds advice to trust the file.
        reason = str(error).partition("\n")[0][:200]
        if "'<f1'" in reason:
            reason += ', as NumPy saves float8: save array.astype("float32") instead'
        raise SourceError(f"expected an .npy file: {reason}") from error
    if dtype.hasobject:
        return Header(shape, fortran, dtype)
    if dtype.subdtype is not None or not dtype.itemsize or min(shape, default=0) < 0:
        raise SourceError(f"expected an array of numbers, found shape {shape} and dtype {dtype}")
    expected, found = math.prod(shape) * dtype.itemsize, size - file.tell()
    if found < expected:
        raise SourceError(
            f"truncated: its header promises {expected:,} bytes of data (shape {shape}, {dtype}), found {found:,}"
        )
    return Header(shape, fortran, dtype)


def _parse_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(file)
    if version == (3, 0):
        # It differs from version 2 only in the encoding of field names, and maps have no fields.
        raise ValueError("version 3.0 of the format is for structured arrays, not activation maps")
    if version not in {(1, 0), (2, 0)}:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not known; the file may be damaged")
    prefix = file.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(prefix, "little")
    if length > _MAX_HEADER:
        raise ValueError(f"the header claims {length:,} bytes, more than an activation map needs")
    return _parsed(version, prefix + file.read(length))


@lru_cache(maxsize=256)
def _parsed(version: tuple[int, int], header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    # Cached: NumPy parses each header as a Python literal, and most files of a set have the same header.
    file = BytesIO(header)
    parsed: tuple[tuple[int, ...], bool, np.dtype[Any]] = (
        npy_format.read_array_header_1_0(file) if version == (1, 0) else npy_format.read_array_header_2_0(file)
    )
    return parsed
