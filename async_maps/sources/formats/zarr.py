"""Zarr 2 and 3: every array of numbers with two or more dimensions is a map or a stack of maps (extra ``zarr``)."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from async_maps.errors import SourceError, require_extra
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.sources.activation_map import ArrayHeader
from async_maps.sources.formats import cf
from async_maps.sources.formats.hierarchy import HierarchyReader, could_be_maps
from async_maps.sources.formats.names import NAMES
from async_maps.sources.formats.registry import translate_format_errors

with require_extra("reading Zarr", "zarr"):
    import numcodecs
    import zarr
    from numcodecs.errors import UnknownCodecError
    from zarr.core.sync import collect_aiterator
    from zarr.errors import UnknownCodecError as UnknownZarrCodecError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.hierarchy import Array, Group
    from async_maps.sources.formats.registry import ListedArray, PassedOver

_MAX_BLOCK = 256 * 2**20
_IMAGE_CODECS = "imagecodecs_"
_PACKAGES = {"crc32c": "crc32c", "msgpack2": "msgpack", "pcodec": "pcodec", "zfpy": "zfpy"}
"""The packages of the codecs that numcodecs knows but does not contain."""


class ZarrReader(HierarchyReader):
    """Reads the maps of a hierarchy. Maps that share chunks are unpacked together and kept until another block."""

    whole, array, group_type = "hierarchy", "array", zarr.Group

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        super().__init__()
        self._store: Any = path
        if is_remote(path):
            # Imported late, because worker processes read only local files.
            from async_maps.filesystems.remote import RemoteFilesystem
            from async_maps.sources.formats.remote_zarr import RemoteZarrStore

            assert isinstance(filesystem, RemoteFilesystem)  # noqa: S101  # is_remote(path)
            self._store = RemoteZarrStore(filesystem, parse_address(path))
        self._coordinates: set[str] = set()
        # Of the last two arrays, because the next array is listed before a stack is named.
        self._first_dimensions: dict[str, str] = {}
        self._folder: tuple[str, Group, set[str]] | None = None
        self._start = 0
        self._block: Any = None

    def close(self) -> None:
        self._array = self._block = None

    def names(self, array: ListedArray, length: int) -> Iterator[str] | None:
        """Return the strings of the coordinate of the first dimension, or of an array of names beside the array."""
        folder, dimension = array.name.rpartition("/")[0], self._first_dimensions.get(array.name)
        coordinates = [f"{folder}/{dimension}" if folder else dimension] if dimension else []
        return self._first_names(coordinates, length) or super().names(array, length)

    def _root(self) -> Group | Array:
        with translate_format_errors("expected a Zarr hierarchy"):
            try:
                return _with_codecs(lambda: zarr.open(self._store, mode="r"))
            except FileNotFoundError:
                raise SourceError("expected a Zarr hierarchy, found no zarr.json, .zgroup or .zarray") from None

    def _names(self, group: Group) -> list[str]:
        # xarray writes the metadata of all arrays into that of the group.
        consolidated = group.metadata.consolidated_metadata
        for metadata in (group.metadata, *(consolidated.metadata.values() if consolidated else ())):
            self._coordinates.update(cf.references(metadata.attributes))
        # Group.members() opens all members, and fails if one is damaged.
        return list(collect_aiterator(group.store.list_dir(group.path)))

    def _member(self, group: Group, name: str) -> Any:
        try:
            return _with_codecs(lambda: group[name])
        except KeyError:
            # Not a node of the hierarchy, for instance Zarr's metadata or a README.
            return None

    def _identity(self, group: Group) -> object:
        return group.path

    def _what(self, array: Array) -> str:
        if array.path.rpartition("/")[2] in self._coordinates or cf.is_place(array.metadata.attributes):
            return cf.COORDINATES
        return super()._what(array)

    def _listed(self, array: Array) -> ArrayHeader | PassedOver | str:
        found = super()._listed(array)
        if isinstance(found, ArrayHeader):
            dimensions = getattr(array.metadata, "dimension_names", None)
            dimensions = dimensions or array.metadata.attributes.get("_ARRAY_DIMENSIONS")
            first = dimensions[0] if isinstance(dimensions, list | tuple) and dimensions else ""
            last = list(self._first_dimensions.items())[-1:]
            self._first_dimensions = dict([*last, (array.path, first if isinstance(first, str) else "")])
        return found

    def _open(self, path: str) -> Array:
        self._block = None
        try:
            array = _with_codecs(lambda: zarr.open_array(self._store, path=path, mode="r"))
        except FileNotFoundError:
            raise SourceError(f"the hierarchy has no array {path!r} anymore") from None
        if not could_be_maps(array):
            raise SourceError(f"the array {path!r} no longer has numbers in two or more dimensions")
        return array

    def _strings(self, path: str) -> Array | None:
        folder, _, name = path.rpartition("/")
        if self._folder is None or folder != self._folder[0]:
            # One listing for all arrays of a group: in a bucket, each attempt to open one takes several requests.
            root = self._root()
            group = root[folder] if folder else root
            present = set(self._names(group)).intersection(NAMES) if isinstance(group, zarr.Group) else set()
            self._folder = folder, group, present
        _, group, present = self._folder
        array = self._member(group, name) if name in present or name not in NAMES else None
        is_text = isinstance(array, zarr.Array) and array.ndim == 1 and array.dtype.kind in "STU"
        return array if is_text else None

    def _values(self, array: Array, index: int | None) -> Any:
        return _with_codecs(lambda: self._unpacked(array, index))

    def _unpacked(self, array: Array, index: int | None) -> Any:
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


def _with_codecs(unpack: Callable[[], Any]) -> Any:
    """Call a function that unpacks chunks or prepares it; name a codec that is not installed, and its package."""
    try:
        return unpack()
    except (UnknownCodecError, UnknownZarrCodecError) as error:
        codec = re.sub(r".*?'+([^']*)'.*", r"\1", str(error))
        # Some versions of Zarr report the name of a class, such as zarr.codecs.numcodecs.PCodec.
        if (short := codec.rpartition(".")[2].lower()) in _PACKAGES:
            codec = short
        if _register(codec):
            return unpack()
        package = "imagecodecs" if codec.startswith(_IMAGE_CODECS) else _PACKAGES.get(codec)
        advice = f"pip install {package}" if package else "install the package that has this codec"
        raise SourceError(f"the codec {codec!r} is not installed: {advice}") from error


def _register(codec: str) -> bool:
    """Register the codecs of imagecodecs, which do not do it themselves."""
    if not codec.startswith(_IMAGE_CODECS):
        return False
    try:
        from imagecodecs.numcodecs import register_codecs
    except ImportError:
        return False
    register_codecs()
    return codec in numcodecs.registry.codec_registry
