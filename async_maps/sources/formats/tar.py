"""Tar archives, as in WebDataset: each member that ends in ``.npy`` is a map or a stack of maps.

Other members, such as images and labels, are skipped.
"""

from __future__ import annotations

import io
import os
import tarfile
from array import array
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import SourceError
from async_maps.sources.formats import npy
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

    The part of an array is the offset of its member's data and their size. So reading needs one seek. The part of a
    member that is not a plain file is None.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as file:
            self._file = file
            self._size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with translate_format_errors("expected a tar archive that is not compressed"):
                self._archive = tarfile.open(fileobj=_Bounded(file), mode="r:")  # noqa: SIM115  # closed in close()

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        repeated = self._repeated()
        empty = True
        for member in self._members():
            if member.isdir():
                continue
            name = _path(member)
            if is_hidden(name):
                yield PassedOver(HIDDEN)
            elif not name.lower().endswith(_SUFFIX):
                yield PassedOver(shown_suffix(name))
            else:
                empty = False
                listed = self._array(member, name[: -len(_SUFFIX)])
                yield listed._replace(refusal=SAME_NAME) if hash(name) in repeated else listed
        if empty:
            raise SourceError("the archive contains no arrays (.npy)")

    def names(self, array: ListedArray, length: int) -> None:
        return None

    def read(self, part: list[int] | None, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        if part is None:
            raise SourceError(_NO_FILE)
        member = tarfile.TarInfo()
        member.offset_data, member.size = part
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

    def _repeated(self) -> set[int]:
        """Return the hashes of the names that several arrays have."""
        hashes = array("q")
        with suppress(SourceError):  # the listing raises it again
            hashes.extend(hash(_path(member)) for member in self._members() if not member.isdir())
        ordered = np.sort(np.array(hashes, np.int64))
        return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())

    def _array(self, member: tarfile.TarInfo, name: str) -> ListedArray:
        if not member.isreg() or member.issparse():
            return ListedArray(name, None, 0, None, _NO_FILE)
        place = [member.offset_data, member.size]
        return npy.array_in_member(name, place, member.size, lambda: self._open(member), _DAMAGED)

    def _open(self, member: tarfile.TarInfo) -> IO[bytes]:
        end = member.offset_data + member.size
        if end > self._size:
            raise SourceError(f"truncated: its data end at byte {end:,}, but the archive at byte {self._size:,}")
        file = self._archive.extractfile(member)
        if file is None:
            raise SourceError("the member is not a file")
        return file


def _path(member: tarfile.TarInfo) -> str:
    # "tar -C folder ." writes "./" before every name.
    return member.name.removeprefix("./")


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
