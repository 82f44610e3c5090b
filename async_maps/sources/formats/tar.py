"""Tar archives, as in WebDataset: each member of a format in :data:`MEMBERS` is read as the file would be.

Other members, such as labels, are passed over.
"""

from __future__ import annotations

import errno
import io
import os
import tarfile
from array import array
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from async_maps.errors import MissingExtraError, SourceError, translate_os_error
from async_maps.sources.formats import npy
from async_maps.sources.formats.registry import (
    HIDDEN,
    SAME_NAME,
    ListedArray,
    PassedOver,
    close_on_error,
    is_hidden,
    open_reader,
    shown_suffix,
    suffix_of,
    translate_format_errors,
    without_suffix,
)
from async_maps.sources.formats.stacks import not_a_map

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import IO, Any, BinaryIO

    from numpy.typing import NDArray
    from typing_extensions import Buffer

    from async_maps.filesystems.filesystem import Filesystem
    from async_maps.sources.formats.registry import Reader

MEMBERS = (".npy", ".npz", ".npy.gz", ".pt", ".pth")
"""The suffixes of the members that are read, each by the reader of its format."""

PICTURES = (".png", ".jpg", ".jpeg")
"""The suffixes of members that are read too. Beside others they are images: then only ``include`` makes them maps."""

_DAMAGED = "the archive is damaged"
_NO_FILE = "the member is a link, a device or a sparse file; only plain files are read"
_MAX_READ = 2**20
"""In bytes. Members are read in pieces of at most this size; names and attributes must be shorter."""


class TarReader:
    """Reads the arrays of the members. Listing reads only headers.

    The part of an ``.npy`` member is the offset of its data and their size, so that reading needs one seek. The part of
    an array in another member also has the suffix and the array's part there. The last of these members stays open. The
    part of a member that cannot be read is the reason.
    """

    def __init__(self, path: str, filesystem: Filesystem) -> None:
        with close_on_error(filesystem.open(path)) as file:
            self._file = file
            self._size = file.seek(0, os.SEEK_END)
            file.seek(0)
            with translate_format_errors("expected a tar archive that is not compressed"):
                tarfile.open(fileobj=_Bounded(file), mode="r:").close()
        self._place: list[Any] = []
        self._member: Reader | None = None

    def arrays(self) -> Iterator[ListedArray | PassedOver]:
        repeated, is_beside = self._repeated()
        empty = True
        for member in self._members():
            if member.isdir():
                continue
            name = _path(member)
            if is_hidden(name):
                yield PassedOver(HIDDEN)
            elif suffix_of(name) not in MEMBERS + PICTURES:
                yield PassedOver(shown_suffix(name))
            else:
                empty = False
                refusal = SAME_NAME if hash(without_suffix(name)) in repeated else ""
                picture = name if suffix_of(name) in PICTURES else ""
                look = partial(self._arrays_in, member, name, refusal, picture)
                if picture and is_beside:
                    yield ListedArray(without_suffix(name), None, 0, picture=picture, look=look)
                else:
                    yield from look()
        if empty:
            raise SourceError(f"the archive contains no arrays ({', '.join(MEMBERS + PICTURES)})")

    def names(self, array: ListedArray, length: int) -> None:
        return None

    def read(self, part: list[Any] | str, index: int | None, max_pixels: int | None = None) -> NDArray[Any]:
        if isinstance(part, str):
            raise SourceError(part)
        offset, size, *inside = part
        if not inside:
            with translate_format_errors(_DAMAGED), self._open(offset, size) as file:
                return npy.read_stream(file, size, index, max_pixels)
        suffix, place = inside
        return self._reader(offset, size, suffix).read(place, index, max_pixels)

    def close(self) -> None:
        self._close_member()
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

    def _repeated(self) -> tuple[set[int], bool]:
        """Return the hashes of the names that several arrays have, and whether there are others than pictures."""
        arrays, pictures = array("q"), array("q")
        with suppress(SourceError):  # the listing raises it again
            for member in self._members():
                name = _path(member)
                suffix = None if member.isdir() or is_hidden(name) else suffix_of(name)
                if suffix in MEMBERS:
                    arrays.append(hash(without_suffix(name)))
                elif suffix in PICTURES:
                    pictures.append(hash(without_suffix(name)))
        ordered = np.sort(np.array(arrays or pictures, np.int64))
        return set(ordered[1:][ordered[1:] == ordered[:-1]].tolist()), bool(arrays)

    def _arrays_in(
        self, member: tarfile.TarInfo, path: str, refusal: str, picture: str
    ) -> Iterator[ListedArray | PassedOver]:
        for found in self._listed(member, without_suffix(path), suffix_of(path)):
            if isinstance(found, ListedArray):
                yield found._replace(refusal=found.refusal or refusal, picture=picture)
            else:
                yield found

    def _listed(self, member: tarfile.TarInfo, name: str, suffix: str | None) -> Iterator[ListedArray | PassedOver]:
        offset, size = member.offset_data, member.size
        if not member.isreg() or member.issparse():
            yield ListedArray(name, _NO_FILE, 0, None, _NO_FILE)
        elif suffix == ".npy":
            yield npy.array_in_member(name, [offset, size], size, lambda: self._open(offset, size), _DAMAGED)
        else:
            try:
                for found in _named(self._reader(offset, size, suffix).arrays(), name):
                    if isinstance(found, ListedArray):
                        yield found._replace(part=[offset, size, suffix, found.part])
                    else:
                        yield found
            except (OSError, SourceError, MissingExtraError) as error:
                reason = translate_os_error(error)
                yield ListedArray(name, reason, 0, None, reason)

    def _reader(self, offset: int, size: int, suffix: str | None) -> Reader:
        """Return the reader of a member, which stays open until another is read."""
        if self._member is None or self._place != [offset, size, suffix]:
            self._close_member()
            self._place = [offset, size, suffix]
            self._member = open_reader(f"member{suffix}", _Member(lambda: self._open(offset, size)))
        return self._member

    def _close_member(self) -> None:
        member, self._member = self._member, None
        if member is not None:
            member.close()

    def _open(self, offset: int, size: int) -> BinaryIO:
        end = offset + size
        if end > self._size:
            raise SourceError(f"truncated: its data end at byte {end:,}, but the archive at byte {self._size:,}")
        return io.BufferedReader(_Window(self._file, offset, size))


def _named(arrays: Iterator[ListedArray | PassedOver], name: str) -> Iterator[ListedArray | PassedOver]:
    """Yield the arrays of a member below its name; the only one has the name of the member."""
    only: ListedArray | None = None
    count = 0
    for found in arrays:
        if isinstance(found, PassedOver) or (found.header is not None and not_a_map(*found.header[:2])):
            yield found
            continue
        count += 1
        if only is not None:
            yield only._replace(name=f"{name}/{only.name}")
            only = None
        if count == 1:
            only = found
        else:
            yield found._replace(name=f"{name}/{found.name}")
    if only is not None:
        yield only._replace(name=name)


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


class _Member:
    """The filesystem of a member's reader: it has only the member."""

    def __init__(self, open_member: Callable[[], BinaryIO]) -> None:
        self._open = open_member

    def open(self, path: str) -> BinaryIO:
        return self._open()


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: IO[bytes], offset: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._offset = offset
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if position < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer)[: max(0, self._size - self._position)]
        self._file.seek(self._offset + self._position)
        count: int = self._file.readinto(view)  # type: ignore[attr-defined]  # binary files have it
        self._position += count
        return count
