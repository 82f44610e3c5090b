"""Tar archives, as in WebDataset: each member that ends in ``.npy`` is a map or a stack of maps.

Other members, such as images and labels, are skipped.
"""

from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

from async_maps.errors import SourceError
from async_maps.sources.formats import npy
from async_maps.sources.formats.registry import ListedMap, close_on_error, translate_format_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any

    from numpy.typing import NDArray

    from async_maps.filesystems.filesystem import Filesystem

_SUFFIX = ".npy"
_DAMAGED = "the archive is damaged"
_NO_FILE = "the member is a link, a device or a sparse file; only plain files are read"
_MAX_READ = 2**20
"""In bytes. Members are read in pieces of at most this size; names and attributes must be shorter."""


class TarReader:
    """Reads the maps of an archive. Listing reads only headers.

    The part of a map is the offset of its member's data, their size, and the index in a stack. So reading needs one
    seek. The part of a member that is not a plain file is None.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as file:
            self._file = file
            self._size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with translate_format_errors("expected a tar archive that is not compressed"):
                self._archive = tarfile.open(fileobj=_Bounded(file), mode="r:")  # noqa: SIM115  # closed in close()

    def maps(self) -> Iterator[ListedMap]:
        empty = True
        for member in self._members():
            if member.name.lower().endswith(_SUFFIX) and not member.isdir():
                empty = False
                yield from self._maps_in(member)
        if empty:
            raise SourceError("the archive contains no arrays (.npy)")

    def read(self, part: list[Any] | None, max_pixels: int | None = None) -> NDArray[Any]:
        if part is None:
            raise SourceError(_NO_FILE)
        offset, size, index = part
        member = tarfile.TarInfo()
        member.offset_data, member.size = offset, size
        with translate_format_errors(_DAMAGED), self._open(member) as file:
            return npy.read_stream(file, member.size, index, max_pixels)

    def close(self) -> None:
        self._archive.close()
        self._file.close()

    def _members(self) -> Iterator[tarfile.TarInfo]:
        """Yield every member; raise SourceError if the archive is truncated or damaged."""
        self._file.seek(0)
        end = 0
        with tarfile.open(fileobj=_Bounded(self._file), mode="r:") as archive:
            while True:
                reached = min(end, self._size)
                with translate_format_errors(f"the archive is truncated or damaged after {reached:,} bytes"):
                    member = archive.next()
                if member is None:
                    break
                # tarfile keeps all members in memory, to find them by name.
                archive.members.clear()  # type: ignore[attr-defined]  # missing in its types
                if archive.offset <= end:
                    raise SourceError(f"the archive is damaged after {end:,} bytes: a member of negative size")
                end = archive.offset
                yield member
        # tarfile stops at any invalid header; a complete archive ends with a block of zeros.
        self._file.seek(end)
        if self._file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise SourceError(f"the archive is truncated or damaged after {end:,} bytes; later members are not listed")

    def _maps_in(self, member: tarfile.TarInfo) -> Iterator[ListedMap]:
        # "tar -C folder ." writes "./" before every name.
        name = member.name.removeprefix("./")[: -len(_SUFFIX)]
        if not member.isreg() or member.issparse():
            yield ListedMap(name, None, 0, None, _NO_FILE)
            return
        place = [member.offset_data, member.size]
        yield from npy.maps_in_member(name, place, member.size, lambda: self._open(member), _DAMAGED)

    def _open(self, member: tarfile.TarInfo) -> IO[bytes]:
        end = member.offset_data + member.size
        if end > self._size:
            raise SourceError(f"truncated: its data end at byte {end:,}, but the archive at byte {self._size:,}")
        file = self._archive.extractfile(member)
        if file is None:
            raise SourceError("the member is not a file")
        return file


class _Bounded(io.BufferedIOBase):
    """A file that refuses large reads: tarfile reads a name in one piece, even if it claims gigabytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ:
            raise SourceError(f"the archive is damaged: a name or attributes of {size:,} bytes")
        return self._file.read(size)
