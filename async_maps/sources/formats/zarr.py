"""Zarr, versions 2 and 3: a folder, whose every array of numbers in two or more dimensions is a map or a stack."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import MissingExtraError, SourceError
from async_maps.filesystems.filesystem import is_remote
from async_maps.sources.formats.registry import ListedMap, translate_format_errors
from async_maps.sources.formats.size import check_chunk, check_size
from async_maps.sources.formats.stacks import check_position, maps_in_array, plane_shape

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    import zarr
    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem

_MAX_BLOCK = 256 * 2**20


def open_reader(path: str, filesystem: Filesystem) -> ZarrReader:
    """The reader of a hierarchy.

    Raises:
        MissingExtraError: zarr is not installed.
        SourceError: it is no Zarr hierarchy.
        OSError: it cannot be read.
    """
    try:
        import zarr  # noqa: F401
    except ImportError:
        raise MissingExtraError("reading Zarr", "zarr") from None
    if not is_remote(path):
        return ZarrReader(path)
    # Worker processes read from disks only: they need no S3 client.
    from async_maps.filesystems.locators import parse_s3_address
    from async_maps.filesystems.s3 import S3Filesystem
    from async_maps.sources.formats.s3_zarr import S3ZarrStore

    assert isinstance(filesystem, S3Filesystem)  # noqa: S101  # what lies in S3 is opened by it
    return ZarrReader(S3ZarrStore(filesystem, parse_s3_address(path)))


class ZarrReader:
    """One hierarchy; a map's part is its array's path, and its position if the array is a stack.

    Maps that share chunks are unpacked together, and the last such block is kept: the next map costs nothing.
    """

    def __init__(self, store: Any) -> None:
        self._store = store
        self._path = ""
        self._array: zarr.Array[Any] | None = None
        self._start = 0
        self._block: NDArray[Any] | None = None

    def maps(self) -> Iterator[ListedMap]:
        """Every map, sorted by the paths of the arrays."""
        import zarr

        with translate_format_errors("expected a Zarr hierarchy"):
            try:
                root = zarr.open(self._store, mode="r")
            except FileNotFoundError:
                raise SourceError("expected a Zarr hierarchy, found no zarr.json, .zgroup or .zarray") from None
        empty = True
        for path, array in [("", root)] if isinstance(root, zarr.Array) else _arrays(root):
            if array is None:
                empty = False
                yield ListedMap(path, [path, None], 0)
            elif _could_be_maps(array):
                empty = False
                yield from maps_in_array(path, array.shape, math.prod(array.shape) * array.dtype.itemsize)
        if empty:
            raise SourceError("the hierarchy holds no array of numbers in two or more dimensions")

    def read(self, part: list[Any], max_pixels: int | None = None) -> NDArray[Any]:
        """Read one array, or one map of a stack."""
        path, index = part
        with translate_format_errors(f"the hierarchy is damaged at {path!r}"):
            array = self._open(path)
            shape, itemsize = array.shape, array.dtype.itemsize
            if index is not None:
                check_position(f"the array {path!r}", shape, index)
                shape = plane_shape(shape)
            check_size(shape, itemsize, max_pixels)
            check_chunk(array.chunks, itemsize, max_pixels)
            return np.asarray(array[...]) if index is None else self._map_of(array, index).reshape(shape)

    def close(self) -> None:
        """Forget the block; nothing is held open."""
        self._array = self._block = None

    def _open(self, path: str) -> zarr.Array[Any]:
        import zarr

        if self._array is None or path != self._path:
            self.close()
            try:
                array = zarr.open_array(self._store, path=path, mode="r")
            except FileNotFoundError:
                raise SourceError(f"the hierarchy holds no array {path!r} any more") from None
            if not _could_be_maps(array):
                raise SourceError(f"the array {path!r} holds no numbers in two or more dimensions any more")
            self._path, self._array = path, array
        return self._array

    def _map_of(self, array: zarr.Array[Any], index: int) -> NDArray[Any]:
        rows = array.chunks[0]
        if rows == 1 or rows * math.prod(array.shape[1:]) * array.dtype.itemsize > _MAX_BLOCK:
            return np.asarray(array[index])
        start = index - index % rows
        if self._block is None or start != self._start:
            # Before the next one is read: two would be twice the memory.
            self._block = None
            self._start, self._block = start, np.asarray(array[start : start + rows])
        block: NDArray[Any] = self._block[index - start]
        return block


def _arrays(root: zarr.Group) -> Iterator[tuple[str, zarr.Array[Any] | None]]:
    """The arrays in a group and in those within, with their paths; None for what cannot be opened."""
    import zarr

    # Not recursion: how deep groups lie in one another is for the hierarchy to say.
    groups = [("", root, _names_in(root))]
    while groups:
        above, group, left = groups[-1]
        name = next(left, None)
        if name is None:
            groups.pop()
            continue
        path = f"{above}{name}"
        try:
            member = group[name]
            if isinstance(member, zarr.Group):
                groups.append((f"{path}/", member, _names_in(member)))
            else:
                yield path, member
        except KeyError:
            # Nothing of Zarr's: its own metadata, a README, what a file manager leaves behind.
            continue
        except Exception:  # noqa: BLE001  # who reads it is told; the others are listed
            yield path, None


def _names_in(group: zarr.Group) -> Iterator[str]:
    # Group.members() would open them all at once, and fail over any that is damaged.
    from zarr.core.sync import collect_aiterator

    with translate_format_errors(f"the hierarchy is damaged at {group.path!r}"):
        return iter(sorted(collect_aiterator(group.store.list_dir(group.path))))


def _could_be_maps(array: zarr.Array[Any]) -> bool:
    return len(array.shape) >= 2 and array.dtype.kind in "biufc"
