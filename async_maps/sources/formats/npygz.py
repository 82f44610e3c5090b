"""``.npy.gz``: an ``.npy`` file in gzip, a map or a stack of maps. It is unpacked as a stream."""

from __future__ import annotations

import math
import os
import sys
from typing import TYPE_CHECKING

from isal import igzip

from async_maps.errors import SourceError
from async_maps.sources.formats import npy
from async_maps.sources.formats.registry import close_on_error, translate_format_errors
from async_maps.sources.formats.size import DEFLATE_RATIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.registry import ListedArray


class NpygzReader:
    """Reads the only array of a file. The stream stays at its place, so that the next map of a stack follows."""

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as self._file:
            self._packed = self._file.seek(0, os.SEEK_END)
            with translate_format_errors("expected an .npy file in gzip"):
                self._file.seek(0)
                stream: Any = igzip.IGzipFile(fileobj=self._file, mode="rb")  # type: ignore[no-untyped-call]  # isal
                self._stream: IO[bytes] = stream
                self._header = npy.read_header(self._stream, sys.maxsize)
                self._start = self._stream.tell()
        self._size = math.prod(self._header.shape) * self._header.dtype.itemsize
        if self._size > self._packed * DEFLATE_RATIO:
            self._file.close()
            raise SourceError(
                f"the file is damaged: its header promises {self._size:,} bytes of data, more than its "
                f"{self._packed:,} compressed bytes can contain"
            )

    def arrays(self) -> Iterator[ListedArray]:
        yield npy.not_pickled(npy.listed("", None, self._header))

    def names(self, array: ListedArray, length: int) -> None:
        return None

    def read(self, part: None, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        header, offset = npy.map_at(self._header, index, max_pixels)
        with translate_format_errors("the file is damaged"):
            # Seeking forward unpacks, and seeking back starts again.
            self._stream.seek(self._start + offset)
            array = npy.read_values(self._stream, header, npy.PIECE)
            if offset + array.nbytes == self._size:
                # The checksum is behind the last map.
                self._stream.read(1)
        return array

    def close(self) -> None:
        self._stream.close()
        self._file.close()
