"""Files in S3 whose maps share what is read of them: they are read in turn, through one reader.

Fetchers work side by side, and each keeps the file that it has read last. Where maps are chunks of one Zarr array, or
lie side by side in one small block of a tar, sixteen fetchers would fetch the same bytes sixteen times.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from async_maps.sources.formats.registry import FORMATS, Readers, suffix_of

if TYPE_CHECKING:
    from typing import Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.sources.activation_map import ActivationMap, Part

_CHUNKED = {"zarr", "hdf5", "npz"}
_BLOCK_BYTES = 512 * 2**10
"""What is smaller comes with its neighbours in one request."""


def shares_reads(map_: ActivationMap) -> bool:
    """Whether reading the map also reads others of its file: then they had better be read one after the other."""
    if map_.path is None or map_.part is None:
        return False
    return map_.max_bytes < _BLOCK_BYTES or FORMATS.get(suffix_of(map_.path) or "", "zarr") in _CHUNKED


class SharedReaders:
    """:class:`~async_maps.sources.formats.registry.Readers` for any number of threads, who take turns.

    Args:
        filesystems: where files lie.
        max_pixels: refuse maps that have more; None for none.
    """

    def __init__(self, filesystems: Filesystems, max_pixels: int | None = None) -> None:
        self._readers = Readers(filesystems, max_pixels)
        self._turn = Lock()

    def __enter__(self) -> SharedReaders:
        return self

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._readers.close()

    def read(self, path: str, part: Part) -> NDArray[Any]:
        """Read one listed map; raises as ``Readers.read`` does."""
        with self._turn:
            return self._readers.read(path, part)
