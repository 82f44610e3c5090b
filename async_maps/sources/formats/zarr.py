"""Zarr 2 and 3: every array of numbers with two or more dimensions is a map or a stack of maps (extra ``zarr``)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from async_maps.errors import SourceError, require_extra
from async_maps.filesystems.filesystem import is_remote
from async_maps.filesystems.locators import parse_s3_address
from async_maps.sources.formats.hierarchy import HierarchyReader, could_be_maps
from async_maps.sources.formats.registry import translate_format_errors

with require_extra("reading Zarr", "zarr"):
    import zarr
    from zarr.core.sync import collect_aiterator

if TYPE_CHECKING:
    from typing import Any

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.hierarchy import Array, Group

_MAX_BLOCK = 256 * 2**20


class ZarrReader(HierarchyReader):
    """Reads the maps of a hierarchy. Maps that share chunks are unpacked together and kept until another block."""

    whole, array, group_type = "hierarchy", "array", zarr.Group

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        super().__init__()
        self._store: Any = path
        if is_remote(path):
            # Imported late, because worker processes read only local files.
            from async_maps.filesystems.s3 import S3Filesystem
            from async_maps.sources.formats.s3_zarr import S3ZarrStore

            assert isinstance(filesystem, S3Filesystem)  # noqa: S101  # is_remote(path)
            self._store = S3ZarrStore(filesystem, parse_s3_address(path))
        self._start = 0
        self._block: Any = None

    def close(self) -> None:
        self._array = self._block = None

    def _root(self) -> Group | Array:
        with translate_format_errors("expected a Zarr hierarchy"):
            try:
                return zarr.open(self._store, mode="r")
            except FileNotFoundError:
                raise SourceError("expected a Zarr hierarchy, found no zarr.json, .zgroup or .zarray") from None

    def _names(self, group: Group) -> list[str]:
        # Group.members() opens all members, and fails if one is damaged.
        return list(collect_aiterator(group.store.list_dir(group.path)))

    def _member(self, group: Group, name: str) -> Any:
        try:
            return group[name]
        except KeyError:
            # Not a node of the hierarchy, for instance Zarr's metadata or a README.
            return None

    def _identity(self, group: Group) -> object:
        return group.path

    def _open(self, path: str) -> Array:
        self._block = None
        try:
            array = zarr.open_array(self._store, path=path, mode="r")
        except FileNotFoundError:
            raise SourceError(f"the hierarchy has no array {path!r} anymore") from None
        if not could_be_maps(array):
            raise SourceError(f"the array {path!r} no longer has numbers in two or more dimensions")
        return array

    def _values(self, array: Array, index: int | None) -> Any:
        if index is None:
            return array[...]
        rows = array.chunks[0]
        if rows == 1 or rows * math.prod(array.shape[1:]) * array.dtype.itemsize > _MAX_BLOCK:
            return array[index]
        start = index - index % rows
        if self._block is None or start != self._start:
            # Free the old block before the next one is read, to save memory.
            self._block = None
            self._start, self._block = start, array[start : start + rows]
        return self._block[index - start]
