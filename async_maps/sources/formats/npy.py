"""NumPy's ``.npy``: each file is a map or a stack of maps."""

from __future__ import annotations

import math
import os
import sys
from functools import lru_cache, partial
from io import BytesIO
from tokenize import TokenError
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib import format as npy_format

from async_maps.errors import SourceError, translate_os_error
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.registry import ListedMap, translate_format_errors
from async_maps.sources.formats.size import check_size
from async_maps.sources.formats.stacks import position_names, read_names, shape_at, stack_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem


_DAMAGE = (
    ValueError, TypeError, LookupError, ArithmeticError, SyntaxError, TokenError, RecursionError, MemoryError, Warning,
)  # fmt: skip
"""NumPy evaluates a header as a Python literal, so a damaged one can raise any of these. Some are warnings, which a
filter may turn into errors."""

_FORTRAN_STACK = (
    "the maps of a stack in Fortran order cannot be read one by one: save np.ascontiguousarray(stack) instead"
)
_PIECE = 2**20
_MAX_HEADER = 10_000
"""NumPy's limit for the header of an untrusted file, in bytes."""


class NpyReader:
    """Reads a map, whose part is None, or a stack, where the parts are indices.

    The names of the maps of a stack ``maps.npy`` are the lines of ``maps.names.txt``, if that file exists.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        self._open_names = partial(filesystem.open, f"{path[: -len('.npy')]}.names.txt")
        self._file = filesystem.open(path)
        self._size = self._file.seek(0, os.SEEK_END)

    def maps(self) -> Iterator[ListedMap]:
        self._file.seek(0)
        yield from maps_in_stream(self._file, self._size, self._names)

    def read(self, part: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        self._file.seek(0)
        return read_stream(self._file, self._size, part, max_pixels, piece=sys.maxsize)

    def close(self) -> None:
        self._file.close()

    def _names(self, length: int) -> Iterator[str]:
        try:
            file = self._open_names()
        except FileNotFoundError:
            yield from position_names(length)
            return
        except OSError as error:
            raise SourceError(f"the list of names cannot be read: {error.strerror}") from error
        except SourceError as error:
            raise SourceError(f"the list of names cannot be read: {error}") from None
        with file:
            # Check the whole list before the first name is used.
            for _ in read_names(file, length):
                pass
            yield from read_names(file, length)


class Header(NamedTuple):
    """The header of an ``.npy`` file; ``fortran`` is the order of the data."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]


def maps_in_stream(
    file: IO[bytes], size: int, names: Callable[[int], Iterable[str]] = position_names
) -> Iterator[ListedMap]:
    """Yield the maps in an ``.npy`` file: one without a name, or those of a stack.

    A file whose header cannot be read is listed as one map; reading it raises the reason. ``file`` is at its start, and
    has ``size`` bytes. ``names`` returns the names of the maps of a stack with the given length.
    """
    try:
        header = _read_header(file, size)
    except SourceError as error:
        yield ListedMap(None, None, size, None, str(error))
        return
    length = stack_length(header.shape)
    map_bytes = math.prod(header.shape) * header.dtype.itemsize // (length or 1)
    if length is None:
        yield ListedMap(None, None, map_bytes, ArrayHeader(header.shape, header.dtype))
        return
    found = ArrayHeader(shape_at("the stack", header.shape, 0), header.dtype)
    problem = _FORTRAN_STACK if _is_fortran_stack(header) else ""
    for index, name in enumerate(names(length)):
        yield ListedMap(name, index, map_bytes, found, problem)


def maps_in_member(
    name: str, part: list[Any], size: int, open_member: Callable[[], IO[bytes]], damaged: str
) -> Iterator[ListedMap]:
    """Yield the maps in an ``.npy`` file in an archive; each part is ``[*part, index]``.

    A damaged member is listed as one map with the reason, which starts with ``damaged``.
    """
    try:
        with translate_format_errors(damaged), open_member() as file:
            for found in maps_in_stream(file, size):
                full_name = name if found.name is None else f"{name}/{found.name}"
                yield found._replace(name=full_name, part=[*part, found.part])
    except (SourceError, OSError) as error:
        yield ListedMap(name, [*part, None], size, None, translate_os_error(error))


def read_stream(
    file: IO[bytes], size: int, part: int | None = None, max_pixels: int | None = None, *, piece: int = _PIECE
) -> NDArray[Any]:
    """Read the array, or one map of a stack, without unpickling.

    The header is checked against the file's ``size`` before memory is allocated, because a header of 200 bytes can
    claim a terabyte. One read has at most ``piece`` bytes, because a member of an archive copies each read; other files
    are read by one call, which for S3 is one request.

    Raises:
        SourceError: the file is not an ``.npy`` file, has pickled objects, is truncated, or is too large.
    """
    header = _read_header(file, size)
    if part is not None:
        header = _seek_map(file, header, part)
    check_size(header.shape, header.dtype.itemsize, max_pixels)
    return read_values(file, header, piece)


def read_values(file: IO[bytes], header: Header, piece: int = sys.maxsize) -> NDArray[Any]:
    """Read the values from a file that is positioned behind its header."""
    data = np.empty(math.prod(header.shape) * header.dtype.itemsize, np.uint8)
    filled = 0
    while count := file.readinto(data.data[filled : filled + piece]):  # type: ignore[attr-defined]  # binary files have it
        filled += count
    if filled < data.size:
        raise SourceError("truncated while it was read")
    return data.view(header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def _seek_map(file: IO[bytes], header: Header, index: int) -> Header:
    shape = shape_at("the stack", header.shape, index)
    if _is_fortran_stack(header):
        raise SourceError(_FORTRAN_STACK)
    file.seek(index * math.prod(shape) * header.dtype.itemsize, os.SEEK_CUR)
    return header._replace(shape=shape)


def _is_fortran_stack(header: Header) -> bool:
    return header.fortran and header.shape[0] > 1


def _read_header(file: IO[bytes], size: int) -> Header:
    if size == 0:
        raise SourceError("expected an .npy file, found an empty one")
    try:
        shape, fortran, dtype = _parse_header(file)
    except _DAMAGE as error:
        # Only the first line: NumPy adds advice to trust the file.
        reason = str(error).partition("\n")[0][:200]
        raise SourceError(f"expected an .npy file: {reason}") from error
    if dtype.hasobject:
        raise SourceError("expected an array of numbers, found pickled Python objects, which are never read")
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
    if version not in {(1, 0), (2, 0)}:
        # Version 3 differs from 2 only in the encoding of field names, and maps have no fields.
        raise ValueError(f"version {version} of the format is for structured arrays, not activation maps")
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
