"""MATLAB's ``.mat`` files of version 7.3, which are HDF5 (extra ``matlab``)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import h5py
import numpy as np

from async_maps.errors import SourceError
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats.cf import text_of
from async_maps.sources.formats.hdf5 import Hdf5Reader
from async_maps.sources.formats.matlab5 import COMPLEX, EMPTY, is_vector, rows_first
from async_maps.sources.formats.names import BLOCK, check_width
from async_maps.sources.formats.registry import PassedOver, translate_format_errors
from async_maps.sources.formats.size import check_chunk
from async_maps.sources.formats.stacks import BELOW_TWO_DIMENSIONS, OBJECTS, TEXT, position_names

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.hierarchy import Array, Group

_PRIVATE = {"#refs#", "#subsystem#"}
"""The groups of MATLAB's own data; cells refer to the arrays in the first."""
_MAX_CELLS = 200_000
_COMPLEX = ("real", "imag")


class _Cells(NamedTuple):
    """A cell array, or a field of an array of structs: a dataset of references to arrays."""

    dataset: Array
    references: NDArray[Any]


class Matlab73Reader(Hdf5Reader):
    """Reads the arrays of numbers of a file, also those in structs and cells."""

    group_type, expected = (h5py.Group, _Cells), "expected a MATLAB file"

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        super().__init__(path, filesystem)
        self._last: tuple[object, _Cells] | None = None

    def _names(self, group: Group) -> list[str]:
        if isinstance(group, _Cells):
            return list(position_names(len(group.references)))
        return super()._names(group)

    def _member(self, group: Group, name: str) -> Any:
        if isinstance(group, _Cells):
            member = self._file[group.references[int(name)]]
        else:
            member = None if name in _PRIVATE else super()._member(group, name)
        return self._cells(member) if _has_references(member) else member

    def _identity(self, group: Group) -> object:
        return super()._identity(group.dataset if isinstance(group, _Cells) else group)

    def _listed(self, array: Array) -> ArrayHeader | PassedOver | str:
        if array.dtype.names == _COMPLEX and not self._what(array):
            return COMPLEX
        found = super()._listed(array)
        if isinstance(found, ArrayHeader):
            dtype = np.dtype(np.bool_) if _class(array) == "logical" else found.dtype
            return ArrayHeader(found.shape, dtype, rows_first(found.chunks))
        return found

    def _what(self, array: Array) -> str:
        if _class(array) == "char":
            return TEXT
        if "MATLAB_object_decode" in array.attrs:
            return OBJECTS
        if "MATLAB_empty" in array.attrs or 0 in (array.shape or ()):
            return EMPTY
        return BELOW_TWO_DIMENSIONS if is_vector(array.shape or ()) else super()._what(array)

    def _shape(self, array: Array) -> tuple[int, ...]:
        return rows_first(array.shape)

    def _first_names(self, paths: list[str], length: int) -> Iterator[str] | None:
        """Return the strings in a cell array, or in the rows of a char array, of the given length."""
        for path in paths:
            with translate_format_errors(f"the file is damaged at {path!r}"):
                found = self._find(path)
                is_text = isinstance(found, h5py.Dataset) and _class(found) == "char" and found.shape[1:] == (length,)
                if is_text or (isinstance(found, _Cells) and len(found.references) == length):
                    return self._texts(path, found)
        return None

    def _texts(self, path: str, array: Array) -> Iterator[str]:
        with translate_format_errors(f"the file is damaged at {path!r}"):
            if isinstance(array, _Cells):
                for name in self._names(array):
                    yield from _rows(path, self._member(array, name))
            else:
                yield from _rows(path, array)

    def _find(self, path: str) -> Any:
        """Return the member at a path, also one in a cell; None if there is none."""
        found = self._file["/"]
        for name in path.split("/"):
            if not isinstance(found, self.group_type):
                return None
            found = self._member(found, name)
        return found

    def _cells(self, dataset: Array) -> _Cells:
        """Return a cell array; the last one is kept, because its arrays are opened one after another."""
        identity = super()._identity(dataset)
        if self._last is None or identity != self._last[0]:
            if dataset.size > _MAX_CELLS:
                raise SourceError(f"a cell array of {dataset.size:,} cells; at most {_MAX_CELLS:,} are read")
            check_chunk(dataset.chunks or (), dataset.dtype.itemsize, 0)
            self._last = identity, _Cells(dataset, np.asarray(dataset[()]).ravel())
        return self._last[1]

    def _open(self, path: str) -> Array:
        found = self._find(path)
        if isinstance(found, h5py.Dataset):
            if found.dtype.names == _COMPLEX:
                raise SourceError(COMPLEX)
            # The array of a cell has a name of its own.
            path = found.name.strip("/")
        return super()._open(path)

    def _values(self, array: Array, index: int | None) -> Any:
        values = np.asarray(super()._values(array, index))
        return (values != 0 if _class(array) == "logical" else values).swapaxes(-1, -2)


def _class(array: Array) -> str:
    return text_of(array.attrs.get("MATLAB_class"))


def _has_references(member: Any) -> bool:
    return isinstance(member, h5py.Dataset) and h5py.check_ref_dtype(member.dtype) is h5py.Reference


def _rows(path: str, array: Array) -> Iterator[str]:
    """Yield the rows of a char array, which is stored as the code units of UTF-16."""
    if not isinstance(array, h5py.Dataset) or _class(array) != "char" or array.dtype != np.uint16:
        raise SourceError(f"expected names in {path!r}, found cells that are not text")
    if "MATLAB_empty" in array.attrs or array.ndim != 2:
        yield ""
        return
    check_width(path, array.shape[0] * 2)
    check_chunk(array.chunks or (), 2, 0)
    for start in range(0, array.shape[1], BLOCK):
        for row in np.ascontiguousarray(array[:, start : start + BLOCK].T):
            yield row.astype("<u2").tobytes().decode("utf-16-le").rstrip()
