"""NetCDF 3: the classic format, and its variants with 64-bit offsets and 64-bit sizes.

The format is a header, the values of each variable, and the records, which contain one value of each variable along the
unlimited dimension. No library is used: SciPy's reads all variables into memory, and netCDF4's reads only from paths.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from async_maps.errors import SourceError
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats import cf
from async_maps.sources.formats.names import BLOCK, NAMES, check_width, decode_names
from async_maps.sources.formats.npy import values_at
from async_maps.sources.formats.registry import ListedArray, PassedOver, close_on_error, translate_format_errors
from async_maps.sources.formats.size import MAX_DIMENSIONS, check_size
from async_maps.sources.formats.stacks import BELOW_TWO_DIMENSIONS, TEXT, shape_at

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem

_DTYPES = {
    1: ">i1",
    2: "S1",
    3: ">i2",
    4: ">i4",
    5: ">f4",
    6: ">f8",
    7: ">u1",
    8: ">u2",
    9: ">u4",
    10: ">i8",
    11: ">u8",
}
_MAX_HEADER = 16 * 2**20


class _Variable(NamedTuple):
    """A variable in the header.

    ``shape`` includes the records, whose distance in bytes is ``stride``; 0 if the variable has none.
    """

    dimensions: tuple[str, ...]
    shape: tuple[int, ...]
    attributes: dict[str, Any]
    dtype: np.dtype[Any]
    start: int
    stride: int = 0


class Netcdf3Reader:
    """Reads the variables in the order of the header; the part of a variable is its name."""

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with (
            close_on_error(filesystem.open(path)) as self._file,
            translate_format_errors("expected a NetCDF file: its header is damaged"),
        ):
            self._size = self._file.seek(0, os.SEEK_END)
            self._attributes, self._variables = _HeaderReader(self._file, self._size).read()

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        if not self._variables:
            raise SourceError("the file contains no variable")
        coordinates = set(cf.references(self._attributes))
        for variable in self._variables.values():
            coordinates.update(cf.references(variable.attributes))
        for name, variable in self._variables.items():
            if variable.dtype.kind == "S":
                yield PassedOver(TEXT)
            elif len(variable.shape) < 2:
                yield PassedOver(BELOW_TWO_DIMENSIONS)
            elif name in coordinates or cf.is_place(variable.attributes):
                yield PassedOver(cf.COORDINATES)
            else:
                header = ArrayHeader(variable.shape, cf.packing(variable.attributes, variable.dtype).dtype)
                size = math.prod(variable.shape) * header.dtype.itemsize
                problem = self._problem(name, variable)
                # A variable that is cut off can claim any number of maps: it is one failure.
                yield ListedArray(name, name, size, None if problem else header, problem)

    def names(self, array: ListedArray, length: int) -> Iterable[str] | None:
        dimension = self._variables[array.name].dimensions[0]
        for name in (dimension, *NAMES):
            found = self._variables.get(name)
            if found and found.dtype.kind == "S" and found.dimensions[:1] == (dimension,) and len(found.shape) == 2:
                return self._texts(name, found)
        return None

    def read(self, part: str, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        variable = self._variables.get(part)
        if variable is None:
            raise SourceError(f"the file has no variable {part!r} anymore")
        packing = cf.packing(variable.attributes, variable.dtype)
        shape = variable.shape if index is None else shape_at(f"the variable {part!r}", variable.shape, index)
        check_size(shape, max(variable.dtype.itemsize, packing.dtype.itemsize), max_pixels)
        if problem := self._problem(part, variable):
            raise SourceError(problem)
        rows = (0, variable.shape[0]) if index is None else (index, index + 1)
        return packing.unpack(self._rows(variable, *rows).reshape(shape))

    def close(self) -> None:
        self._file.close()

    def _rows(self, variable: _Variable, start: int, end: int) -> NDArray[Any]:
        """Read a range of the first dimension."""
        row = variable.shape[1:]
        size = math.prod(row) * variable.dtype.itemsize
        stride = variable.stride or size
        if stride == size:
            return values_at(self._file, variable.start + start * stride, (end - start, *row), variable.dtype)
        values = np.empty((end - start, *row), variable.dtype)
        for number in range(start, end):
            values[number - start] = values_at(self._file, variable.start + number * stride, row, variable.dtype)
        return values

    def _problem(self, name: str, variable: _Variable) -> str:
        """Return that the values of a variable are cut off; empty if they are not."""
        row = math.prod(variable.shape[1:]) * variable.dtype.itemsize
        rows = variable.shape[0]
        end = variable.start + (rows - 1) * (variable.stride or row) + row if rows else variable.start
        if end <= self._size:
            return ""
        return f"truncated: variable {name!r} ends at byte {end:,}, but the file at byte {self._size:,}"

    def _texts(self, name: str, variable: _Variable) -> Iterator[str]:
        length, width = variable.shape
        check_width(name, width)
        if problem := self._problem(name, variable):
            raise SourceError(problem)
        for start in range(0, length, BLOCK):
            rows = self._rows(variable, start, min(start + BLOCK, length))
            # Without a width, all names are empty.
            yield from decode_names(name, rows.view(f"S{width}").ravel() if width else [b""] * len(rows))


class _HeaderReader:
    """Reads a header, and never more than ``_MAX_HEADER`` bytes of it."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._size = size
        self._read = 0
        file.seek(0)
        magic = self._bytes(4)
        self._version = magic[3]
        if magic[:3] != b"CDF" or self._version not in {1, 2, 5}:
            raise SourceError(f"expected a NetCDF file, found one that starts with {magic!r}")

    def read(self) -> tuple[dict[str, Any], dict[str, _Variable]]:
        """Return the attributes of the file, and its variables."""
        records = self._number()
        dimensions = [(self._name(), self._number()) for _ in self._list(10)]
        attributes = self._attributes()
        variables = {self._name(): self._variable(dimensions) for _ in self._list(11)}
        stored = {name: variable for name, (variable, is_record) in variables.items() if is_record}
        strides = {name: math.prod(variable.shape[1:]) * variable.dtype.itemsize for name, variable in stored.items()}
        # Records are padded to four bytes, except those of the only variable that has them.
        stride = sum(strides.values()) if len(strides) == 1 else sum(size + -size % 4 for size in strides.values())
        if records >= self._unknown:
            # The file was written as a stream.
            first = min((variable.start for variable in stored.values()), default=0)
            records = (self._size - first) // stride if stride else 0
        return attributes, {
            name: variable._replace(shape=(records, *variable.shape[1:]), stride=stride) if is_record else variable
            for name, (variable, is_record) in variables.items()
        }

    @property
    def _unknown(self) -> int:
        return 2**64 - 1 if self._version == 5 else 2**32 - 1

    def _variable(self, dimensions: list[tuple[str, int]]) -> tuple[_Variable, bool]:
        """Return a variable, and whether it has records; its shape has 0 records."""
        count = self._number()
        if count > MAX_DIMENSIONS:
            raise SourceError(f"expected a variable of up to {MAX_DIMENSIONS} dimensions, found {count:,}")
        chosen = [dimensions[self._number()] for _ in range(count)]
        attributes = self._attributes()
        dtype = np.dtype(_DTYPES[self._integer(4)])
        self._number()  # the size, which is wrong for large variables
        start = self._integer(4 if self._version == 1 else 8)
        names, shape = tuple(name for name, _ in chosen), tuple(size for _, size in chosen)
        return _Variable(names, shape, attributes, dtype, start), shape[:1] == (0,)

    def _attributes(self) -> dict[str, Any]:
        """Return the attributes that are used."""
        attributes: dict[str, Any] = {}
        for _ in self._list(12):
            name, dtype, count = self._name(), np.dtype(_DTYPES[self._integer(4)]), self._number()
            size = count * dtype.itemsize
            if name in cf.ATTRIBUTES and size <= cf.MAX_ATTRIBUTE:
                content = self._bytes(size)
                attributes[name] = content if dtype.kind == "S" else np.frombuffer(content, dtype)
                self._skip(-size % 4)
            else:
                self._skip(size + -size % 4)
        return attributes

    def _list(self, tag: int) -> range:
        found, count = self._integer(4), self._number()
        if found not in {0, tag} or (found == 0 and count):
            raise SourceError(f"expected a NetCDF file: its header is damaged before byte {self._file.tell():,}")
        return range(count)

    def _name(self) -> str:
        size = self._number()
        name = self._bytes(size).decode("utf-8", "surrogateescape")
        self._skip(-size % 4)
        return name

    def _number(self) -> int:
        return self._integer(8 if self._version == 5 else 4)

    def _integer(self, size: int) -> int:
        return int.from_bytes(self._bytes(size), "big")

    def _bytes(self, size: int) -> bytes:
        self._read += size
        if self._read > _MAX_HEADER:
            raise SourceError(f"expected a NetCDF file: its header has more than {_MAX_HEADER:,} bytes")
        content = self._file.read(size)
        if len(content) < size:
            raise SourceError(f"expected a NetCDF file: its header is cut off at byte {self._size:,}")
        return content

    def _skip(self, size: int) -> None:
        if size > self._size:
            raise SourceError(f"expected a NetCDF file: its header is cut off at byte {self._size:,}")
        self._file.seek(size, os.SEEK_CUR)
