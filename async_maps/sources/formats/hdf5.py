"""HDF5: every dataset of numbers with two or more dimensions is a map or a stack of maps (extra ``hdf5``).

Other datasets, such as labels, are skipped. So are soft and external links; targets in this file are listed at their
own path.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import SourceError, require_extra
from async_maps.keys import printable
from async_maps.sources.formats.hierarchy import HierarchyReader, could_be_maps
from async_maps.sources.formats.registry import PassedOver, close_on_error, translate_format_errors
from async_maps.sources.formats.stacks import TEXT, stack_length

with require_extra("reading HDF5", "hdf5"):
    import h5py

if TYPE_CHECKING:
    from typing import Any, ClassVar

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.hierarchy import Array, Group

LINKS = "links, which are not followed"
_MAX_CACHE = 256 * 2**20
_FILTERS = {
    307: "bzip2",
    32001: "blosc",
    32004: "lz4",
    32008: "bitshuffle",
    32013: "zfp",
    32015: "zstd",
    32017: "sz",
    32018: "fcidecomp",
    32024: "sz3",
    32026: "blosc2",
    32028: "sperr",
    32033: "htj2k",
}
"""The filters in the package hdf5plugin, by their registered numbers."""


class Hdf5Reader(HierarchyReader):
    """Reads the maps of an HDF5 file."""

    whole, array, expected = "file", "dataset", "expected an HDF5 file"
    group_type: ClassVar[Any] = h5py.Group

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        super().__init__()
        with close_on_error(filesystem.open(path)) as self._stream, translate_format_errors(self.expected):
            # HDF5 does not lock a Python file object, so writers and this reader do not block each other.
            self._file = h5py.File(self._stream, "r")

    def close(self) -> None:
        super().close()
        self._file.close()
        self._stream.close()

    def _root(self) -> Group:
        return self._file["/"]

    def _names(self, group: Group) -> list[str]:
        # h5py returns names that are not UTF-8 as bytes.
        return [name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name for name in group]

    def _member(self, group: Group, name: str) -> Any:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            return PassedOver(LINKS)
        member = group[name]
        if could_be_maps(member):
            _check(member)
        return member

    def _identity(self, group: Group) -> object:
        info = h5py.h5o.get_info(group.id)
        return info.fileno, info.addr

    def _open(self, path: str) -> Array:
        """Open a dataset with a cache for the chunks of one map, because the next map may be in the same chunks."""
        dataset = self._file[path]
        if not isinstance(dataset, h5py.Dataset):
            raise SourceError(f"the file has no dataset {path!r} anymore, or its group is damaged")
        _check(dataset)
        chunks = dataset.chunks
        is_stack = stack_length(dataset.shape) or stack_length(dataset.shape, "sum")
        if chunks and is_stack and chunks[0] > 1:
            count = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape[1:], chunks[1:], strict=True))
            cache = min(count * math.prod(chunks) * dataset.dtype.itemsize, _MAX_CACHE)
            access = dataset.id.get_access_plist()
            # HDF5 recommends about 100 slots per chunk. 1.0: evict completely read chunks first.
            access.set_chunk_cache(max(521, min(100 * count, 100_003)), max(cache, 2**20), 1.0)
            # Only the first opening of a dataset sets its cache.
            del dataset
            dataset = h5py.Dataset(h5py.h5d.open(self._file.id, path.encode("utf-8", "surrogateescape"), access))
        return dataset

    def _what(self, array: Array) -> str:
        return TEXT if h5py.check_string_dtype(array.dtype) else ""

    def _strings(self, path: str) -> Array | None:
        folder, _, name = path.rpartition("/")
        group = self._file[folder or "/"]
        dataset = self._member(group, name) if name in group else None
        if not isinstance(dataset, h5py.Dataset) or not _is_text(dataset):
            return None
        _check(dataset)
        return dataset

    def _values(self, array: Array, index: int | None) -> Any:
        return array[() if index is None else index]


def _is_text(dataset: Array) -> bool:
    if len(dataset.shape or ()) == 2:
        # Characters, as NetCDF's libraries write text.
        return bool(dataset.dtype == np.dtype("S1"))
    return len(dataset.shape or ()) == 1 and bool(h5py.check_string_dtype(dataset.dtype))


def _check(dataset: Array) -> None:
    """Raise SourceError if the data of a dataset cannot be read."""
    if dataset.is_virtual or dataset.external:
        raise SourceError("the data of a virtual or external dataset are in other files, which are not read")
    if not dataset.chunks:
        return
    properties = dataset.id.get_create_plist()
    for number in range(properties.get_nfilters()):
        code, _, _, name = properties.get_filter(number)
        if not _can_unpack(code):
            known = _FILTERS.get(code)
            shown = known or printable(name.decode("utf-8", "replace"))[:50] or "without a name"
            advice = "pip install hdf5plugin" if known else "install its plugin, and set HDF5_PLUGIN_PATH to its folder"
            raise SourceError(f"the HDF5 filter {shown} (number {code}) is not installed: {advice}")


def _can_unpack(code: int) -> bool:
    if h5py.h5z.filter_avail(code):
        return True
    if code not in _FILTERS:
        return False
    try:
        # The import registers its filters.
        import hdf5plugin  # noqa: F401  # it registers filters
    except ImportError:
        return False
    return bool(h5py.h5z.filter_avail(code))
