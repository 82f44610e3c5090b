"""HDF5: every dataset of numbers in two or more dimensions is a map or a stack of them.

What a map is not, labels and texts and settings, lies in the same files: it is passed over. So are soft and external
links, because what they lead to is listed where it lies, if it is in this file at all.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import MissingExtraError, SourceError
from async_maps.sources.formats.registry import translate_format_errors
from async_maps.sources.formats.size import check_chunk, check_size
from async_maps.sources.formats.stacks import check_position, maps_in_array, plane_shape, stack_length

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any, TypeAlias

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.registry import ListedMap

    Dataset: TypeAlias = Any
    Group: TypeAlias = Any

_MAX_CACHE = 256 * 2**20


def open_reader(path: str, filesystem: Filesystem) -> Hdf5Reader:
    """The reader of a file.

    Raises:
        MissingExtraError: h5py is not installed.
        SourceError: it is no HDF5 file.
        OSError: it cannot be read.
    """
    try:
        import h5py  # noqa: F401
    except ImportError:
        raise MissingExtraError("reading HDF5", "hdf5") from None
    return Hdf5Reader(filesystem.open(path))


class Hdf5Reader:
    """One file; a map's part is its dataset's path, and its position if the dataset is a stack."""

    def __init__(self, stream: IO[bytes]) -> None:
        import h5py

        self._stream = stream
        self._path = ""
        self._dataset: Dataset = None
        try:
            # Through Python's file, HDF5 locks nothing: neither a writer nor we have to wait.
            with translate_format_errors("expected an HDF5 file"):
                self._file = h5py.File(stream, "r")
        except BaseException:
            stream.close()
            raise

    def maps(self) -> Iterator[ListedMap]:
        """Every map, sorted by the paths of the datasets."""
        empty = True
        for path, shape, itemsize in self._datasets():
            empty = False
            yield from maps_in_array(path, shape, math.prod(shape) * itemsize)
        if empty:
            raise SourceError("the file holds no dataset of numbers in two or more dimensions")

    def read(self, part: list[Any], max_pixels: int | None = None) -> NDArray[Any]:
        """Read one dataset, or of a stack only the one map."""
        path, index = part
        with translate_format_errors(f"the file is damaged at {path!r}"):
            dataset = self._open(path)
            if _lies_elsewhere(dataset):
                raise SourceError("a dataset whose data lie in other files (virtual or external): those are not read")
            shape, itemsize = dataset.shape, dataset.dtype.itemsize
            if index is not None:
                check_position(f"the dataset {path!r}", shape, index)
                shape = plane_shape(shape)
            check_size(shape, itemsize, max_pixels)
            check_chunk(dataset.chunks or (), itemsize, max_pixels)
            return np.asarray(dataset[() if index is None else index]).reshape(shape)

    def close(self) -> None:
        """Close the file."""
        self._dataset = None
        self._file.close()
        self._stream.close()

    def _datasets(self) -> Iterator[tuple[str, tuple[int, ...], int]]:
        """The datasets that could be maps: path, shape, and bytes of a value.

        What cannot be opened, and what is not read, is listed as one map of no size: who reads it is told why.
        """
        with translate_format_errors("the file is damaged"):
            root = self._file["/"]
            names = _names_in(root)
            seen = {_address(root)}
        # Not recursion: how deep groups lie in one another is for the file to say.
        groups = [("", root, names)]
        while groups:
            above, group, left = groups[-1]
            name = next(left, None)
            if name is None:
                groups.pop()
                continue
            path = f"{above}{name}"
            try:
                item = _look_up(group, name)
                found = None
                if isinstance(item, tuple):
                    found = item
                # A group with two names, or within itself, is listed once.
                elif item is not None and (address := _address(item)) not in seen:
                    groups.append((f"{path}/", item, _names_in(item)))
                    seen.add(address)
            except Exception:  # noqa: BLE001  # h5py's errors have no root
                found = (), 0
            if found is not None:
                yield path, *found

    def _open(self, path: str) -> Dataset:
        """A dataset, with a cache for the chunks that one map crosses: those are the ones that the next map shares."""
        import h5py

        if self._dataset is None or path != self._path:
            self._dataset = None
            dataset = self._file[path]
            if not isinstance(dataset, h5py.Dataset):
                raise SourceError(f"the file holds no dataset {path!r}: it is gone, or a group that is damaged")
            chunks = dataset.chunks
            if chunks and stack_length(dataset.shape) and chunks[0] > 1:
                count = math.prod(-(-size // chunk) for size, chunk in zip(dataset.shape[1:], chunks[1:], strict=True))
                cache = min(count * math.prod(chunks) * dataset.dtype.itemsize, _MAX_CACHE)
                access = dataset.id.get_access_plist()
                # HDF5's advice is some hundred slots a chunk. 1: chunks that were read to their end go first.
                access.set_chunk_cache(max(521, min(100 * count, 100_003)), max(cache, 2**20), 1.0)
                # The cache belongs to a dataset's first opening.
                del dataset
                dataset = h5py.Dataset(h5py.h5d.open(self._file.id, path.encode("utf-8", "surrogateescape"), access))
            self._path, self._dataset = path, dataset
        return self._dataset


def _names_in(group: Group) -> Iterator[str]:
    # h5py hands over what is not UTF-8 as bytes.
    return iter(sorted(name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name for name in group))


def _look_up(group: Group, name: str) -> Group | tuple[tuple[int, ...], int] | None:
    """What a name in a group stands for: a group, the shape and bytes a value of what could be maps, or neither."""
    import h5py

    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        return None
    item = group[name]
    if isinstance(item, h5py.Group):
        return item
    if not isinstance(item, h5py.Dataset) or item.shape is None or len(item.shape) < 2:
        return None
    if item.dtype.kind not in "biufc":
        return None
    return ((), 0) if _lies_elsewhere(item) else (item.shape, item.dtype.itemsize)


def _lies_elsewhere(dataset: Dataset) -> bool:
    return bool(dataset.is_virtual or dataset.external)


def _address(group: Group) -> Any:
    """What two names of one group have in common."""
    import h5py

    info = h5py.h5o.get_info(group.id)
    return info.fileno, info.addr
