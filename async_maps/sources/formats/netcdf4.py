"""NetCDF 4: an HDF5 file with the conventions of NetCDF (extra ``netcdf``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h5py
import numpy as np

from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats import cf
from async_maps.sources.formats.hdf5 import Hdf5Reader
from async_maps.sources.formats.registry import translate_format_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.hierarchy import Array, Group
    from async_maps.sources.formats.registry import ListedArray, PassedOver

_NO_VARIABLE = "This is a netCDF dimension but not a netCDF variable."
"""The start of the attribute NAME of a dimension without values."""


class Netcdf4Reader(Hdf5Reader):
    """Reads the variables of a file. Missing values become NaN, and packed values are unpacked."""

    array, expected = "variable", "expected a NetCDF file"

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        super().__init__(path, filesystem)
        self._coordinates: set[str] = set()

    def names(self, array: ListedArray, length: int) -> Iterator[str] | None:
        """Return the strings of the coordinate of the first dimension, or of an array of names beside the variable."""
        with translate_format_errors(f"the file is damaged at {array.name!r}"):
            # Not by ``dims``, which fails in h5py 3.11 with files of newer libraries.
            dimensions = _attributes(self._file[array.name]).get("DIMENSION_LIST", [[]])
            coordinates = [self._file[reference].name for reference in dimensions[0]]
        return self._first_names(coordinates, length) or super().names(array, length)

    def _names(self, group: Group) -> list[str]:
        # Before the first variable of a group is listed, those of all its variables are known.
        names = super()._names(group)
        self._coordinates.update(cf.references(_attributes(group)))
        for name in names:
            if isinstance(group.get(name, getlink=True), h5py.HardLink) and isinstance(group[name], h5py.Dataset):
                self._coordinates.update(cf.references(_attributes(group[name])))
        return names

    def _member(self, group: Group, name: str) -> Any:
        member = super()._member(group, name)
        if isinstance(member, h5py.Dataset) and cf.text_of(_attributes(member).get("NAME")).startswith(_NO_VARIABLE):
            return None
        return member

    def _what(self, array: Array) -> str:
        if array.name.rpartition("/")[2] in self._coordinates or cf.is_place(_attributes(array)):
            return cf.COORDINATES
        return super()._what(array)

    def _listed(self, array: Array) -> ArrayHeader | PassedOver | str:
        found = super()._listed(array)
        if isinstance(found, ArrayHeader):
            return found._replace(dtype=cf.packing(_attributes(array), array.dtype).dtype)
        return found

    def _open(self, path: str) -> Array:
        dataset = super()._open(path)
        self._packing = cf.packing(_attributes(dataset), dataset.dtype)
        return dataset

    def _values(self, array: Array, index: int | None) -> Any:
        return self._packing.unpack(np.asarray(super()._values(array, index)))


def _attributes(owner: Any) -> dict[str, Any]:
    """Return the attributes that are used, except large ones."""
    found = {}
    for name in (*cf.ATTRIBUTES, "DIMENSION_LIST", "NAME"):
        if name in owner.attrs and owner.attrs.get_id(name).get_storage_size() <= cf.MAX_ATTRIBUTE:
            found[name] = owner.attrs[name]
    return found
