"""NumPy's ``.npz``: a zip archive of ``.npy`` files; each is a map or a stack of maps."""

from __future__ import annotations

import os
import zipfile
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.sources.formats import npy
from async_maps.sources.formats.names import BLOCK, check_width, decode_names, paths_of_names
from async_maps.sources.formats.registry import (
    HIDDEN,
    SAME_NAME,
    ListedArray,
    PassedOver,
    close_on_error,
    is_hidden,
    shown_suffix,
    translate_format_errors,
)
from async_maps.sources.formats.size import DEFLATE_RATIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem
_SUFFIX = ".npy"
_MAX_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_RATIO}
_MAX_RATIO_OTHERS = 2_000_000
"""The maximum ratio of compression of bzip2 and LZMA: more than zeros reach."""


class NpzReader:
    """Reads the arrays in the order of the archive; a part is the key of an array."""

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as self._file:
            self._size = self._file.seek(0, os.SEEK_END)
            with translate_format_errors("expected an .npz archive (a zip file)"):
                self._archive = zipfile.ZipFile(self._file)

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        infos = self._archive.infolist()
        if not any(info.filename.endswith(_SUFFIX) for info in infos):
            raise SourceError("the archive contains no arrays (.npy)")
        names = Counter(info.filename for info in infos)
        for info in infos:
            if info.filename.endswith("/"):
                continue
            if not info.filename.endswith(_SUFFIX):
                yield PassedOver(shown_suffix(info.filename))
            elif is_hidden(info.filename):
                yield PassedOver(HIDDEN)
            else:
                member = info.filename.removesuffix(_SUFFIX)
                open_member, damaged = partial(self._open, info), f"the archive is damaged at {member!r}"
                array = npy.array_in_member(member, member, info.file_size, open_member, damaged)
                yield array if names[info.filename] == 1 else array._replace(refusal=SAME_NAME)

    def names(self, array: ListedArray, length: int) -> Iterator[str] | None:
        for member in paths_of_names(array.name):
            if f"{member}{_SUFFIX}" in self._archive.NameToInfo:
                found = self._texts(member, length)
                if found is not None:
                    return found
        return None

    def read(self, part: str, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        try:
            info = self._archive.getinfo(f"{part}{_SUFFIX}")
        except KeyError:
            raise SourceError(f"the archive has no array {part!r} anymore") from None
        with translate_format_errors(f"the archive is damaged at {part!r}"), self._open(info) as file:
            return npy.read_stream(file, info.file_size, index, max_pixels)

    def close(self) -> None:
        self._archive.close()
        self._file.close()

    def _texts(self, member: str, length: int) -> Iterator[str] | None:
        """Return the strings of a member with one dimension of the given length; None if it is none."""
        info = self._archive.getinfo(f"{member}{_SUFFIX}")
        with translate_format_errors(f"the archive is damaged at {member!r}"), self._open(info) as file:
            header = npy.read_header(file, info.file_size)
        if header.shape != (length,) or header.dtype.kind not in "SU":
            return None
        check_width(member, header.dtype.itemsize)
        return self._blocks(member, info, length)

    def _blocks(self, member: str, info: zipfile.ZipInfo, length: int) -> Iterator[str]:
        with translate_format_errors(f"the archive is damaged at {member!r}"), self._open(info) as file:
            header = npy.read_header(file, info.file_size)
            for start in range(0, length, BLOCK):
                rows = header._replace(shape=(min(BLOCK, length - start),))
                yield from decode_names(member, npy.read_values(file, rows, npy.PIECE))

    def _open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        """Open a member, unless it claims a size that its bytes cannot unpack to, which would list too many maps."""
        packed = min(info.compress_size, self._size)
        if info.file_size > packed * _MAX_RATIOS.get(info.compress_type, _MAX_RATIO_OTHERS):
            member = info.filename.removesuffix(".npy")
            raise SourceError(
                f"the archive is damaged at {member!r}: it claims {info.file_size:,} bytes, more than its {packed:,} "
                "compressed bytes can contain"
            )
        return self._archive.open(info)
