"""Listing, reading and deleting objects by locator, in object services and in folders. Everything here blocks."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from isal import isal_zlib

from async_maps.errors import ObjectError, SourceError, StoreError, translate_os_error
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.filesystems.below import folder_below
from async_maps.filesystems.filesystem import Filesystems, LocalFilesystem
from async_maps.filesystems.locators import file_path
from async_maps.filesystems.temporary import PREFIX
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Sequence

    from async_maps.settings import S3Settings

_MOST_BYTES = 2**40
"""More than the largest object of one PUT, 5 GiB."""
_PIECE = 2**20
_CLOCK_ERROR_S = 2.0


class ObjectInfo(NamedTuple):
    """An object in a listing.

    Attributes:
        locator: its URL.
        size: in bytes.
        etag: its ETag without quotes; None for a file.
        modified: the time of its last change by the store's clock, in seconds since 1970; None if unknown.
    """

    locator: str
    size: int
    etag: str | None
    modified: float | None = None


class Content(NamedTuple):
    """The content of an object. A file has no content type; ``modified`` is as in :class:`ObjectInfo`.

    ``etag_is_md5`` is False if the ETag cannot be the MD5 of the bytes, because KMS encrypts the object (Amazon S3 API
    reference, "Object").
    """

    data: bytes | bytearray
    content_type: str | None = None
    etag_is_md5: bool = False
    modified: float | None = None


class Checksum(NamedTuple):
    """What a file holds: its size in bytes, its CRC32 in 8 hexadecimal digits, and the time of its last change.

    The time is in seconds since 1970.
    """

    size: int
    crc32: str
    modified: float


def checksum(locator: str) -> Checksum:
    """Read a ``file://`` locator in pieces of at most 1 MiB.

    Raises:
        FileNotFoundError: the file does not exist.
        ObjectError: it cannot be read.
    """
    path = file_path(locator)
    assert path is not None  # noqa: S101  # the caller's promise
    size = crc32 = 0
    try:
        with LocalFilesystem().open(path) as file:
            status = os.fstat(file.fileno())
            # A buffer of the file's size: most overlays are much smaller than a piece.
            length = min(_PIECE, status.st_size + 1)
            while piece := file.read(length):
                size, crc32 = size + len(piece), isal_zlib.crc32(piece, crc32)
    except FileNotFoundError:
        raise
    except (OSError, SourceError) as error:
        raise ObjectError(f"{printable(locator)}: {translate_os_error(error)}") from error
    return Checksum(size, f"{crc32:08x}", status.st_mtime)


class Objects:
    """Finds, lists, reads and deletes objects by locator. Thread-safe.

    Raises:
        ObjectError: all methods raise it if the service or the disk refuses a request, for instance without permission.
        StoreError: all methods raise it if the service cannot be reached, or its configuration cannot be used.
    """

    def __init__(self, s3: S3Settings | None = None) -> None:
        self._filesystems = Filesystems(s3)

    def __enter__(self) -> Objects:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections permanently: a thread that waits for an answer gets an error."""
        self._filesystems.close()

    def identity(self, folder: str) -> str:
        """Return the ``Store.identity`` of a run to that folder."""
        if not is_remote(folder):
            return folder
        with _translate_errors(folder):
            return self._filesystems.remote(folder).identity(folder)

    def clock_offset_s(self, folder: str) -> float:
        """Return how many seconds the clock of a folder's store is ahead of this machine's, after a listing.

        It is 0 if both differ by less than 2 s, because the store tells its time in whole seconds.
        """
        offset = self._filesystems.remote(folder).clock_offset_s if is_remote(folder) else 0.0
        return offset if abs(offset) >= _CLOCK_ERROR_S else 0.0

    def below(self, folder: str) -> Generator[ObjectInfo, None, None]:
        """Yield the objects below a folder, in no particular order.

        The folder ends in a slash: ``s3://bucket/prefix/`` or ``file:///folder/``. One request lists 1,000 objects, or
        5,000 in Azure.
        """
        with _translate_errors(folder):
            if (path := file_path(folder)) is not None:
                yield from _files_below(path)
                return
            _, bucket, prefix, _ = address = parse_address(folder)
            filesystem = self._filesystems.at(address)
            for found in filesystem.objects(bucket, prefix):
                # Some tools create an object "folder/" for a folder; it is not an overlay.
                if not found.key.endswith("/"):
                    locator = filesystem.locator(bucket, found.key)
                    yield ObjectInfo(locator, found.size, found.etag or None, found.modified)

    def find(self, locator: str, within: str | None = None) -> ObjectInfo | None:
        """Return one object as :meth:`below` lists it, or None if it does not exist.

        A file outside the folder ``within`` that a link leads to does not exist.
        """
        if (path := file_path(locator)) is not None:
            try:
                status = os.stat(path)
                root = os.path.realpath(file_path(within or "file:///") or "/")
                if os.path.commonpath((root, os.path.realpath(os.path.dirname(path)))) != root:
                    return None
            except (FileNotFoundError, NotADirectoryError):
                return None
            except (OSError, ValueError) as error:
                reason = getattr(error, "strerror", None) or error
                raise ObjectError(f"{printable(locator)}: cannot be read: {reason}") from error
            is_file = stat.S_ISREG(status.st_mode)
            return ObjectInfo(locator, status.st_size, None, status.st_mtime) if is_file else None
        with _translate_errors(locator):
            found = self._filesystems.remote(locator).find(locator)
        return None if found is None else ObjectInfo(locator, found.size, found.etag or None, found.modified)

    def read(self, locator: str, start: int = 0, most: int = _MOST_BYTES) -> Content:
        """Read an object from an offset on, at most that many bytes, in one request.

        Raises:
            OSError: the object cannot be read, or does not exist (FileNotFoundError).
            SourceError: the service refuses the request.
            StoreError: the service cannot be reached.
        """
        if (path := file_path(locator)) is not None:
            with self._filesystems.of(path).open(path) as file:
                file.seek(start)
                size = os.fstat(file.fileno()).st_size
                return Content(file.read(min(size + 1, most)), modified=os.fstat(file.fileno()).st_mtime)
        from async_maps.filesystems.remote import RefusedError

        address = parse_address(locator)
        try:
            found = self._filesystems.at(address).get(address, start, most)
        except RefusedError:
            raise
        except SourceError as error:
            raise StoreError(f"{printable(locator)}: {error}") from error
        etag_is_md5 = not found.encryption.startswith("aws:kms")
        return Content(found.data, found.content_type, etag_is_md5, found.modified)

    def delete(self, locators: Sequence[str], within: str) -> dict[str, str]:
        """Delete up to 1,000 objects. The locators must be sorted.

        In S3, that is one request per bucket, in other services one per object. An object that does not exist counts as
        deleted. Of a folder ``within``, nothing outside it is deleted, also not through a link.

        Returns:
            The objects that could not be deleted, with the reasons.
        """
        kept = {}
        for locator in locators:
            if (path := file_path(locator)) is not None:
                try:
                    *folders, name = _parts(path, within)
                    with folder_below(file_path(within) or "", folders) as folder:
                        os.unlink(name, dir_fd=folder)
                except FileNotFoundError:
                    pass
                except OSError as error:
                    kept[locator] = error.strerror or str(error)
        addresses = [parse_address(locator) for locator in locators if is_remote(locator)]
        for bucket, group in groupby(addresses, lambda address: address._replace(key="")):
            keys = [address.key for address in group]
            try:
                with _translate_errors(bucket.folder):
                    refused = self._filesystems.at(bucket).delete(bucket.bucket, keys)
            except ObjectError as error:
                refused = dict.fromkeys(keys, str(error))
            kept |= {str(bucket._replace(key=key)): reason for key, reason in refused.items()}
        return kept


def _parts(path: str, within: str) -> list[str]:
    """Return the parts of a path below a folder, which is a ``file://`` locator."""
    root = (file_path(within) or "").rstrip("/")
    if not path.startswith(f"{root}/"):
        raise OSError(errno.EXDEV, f"it is not below {printable(within)}")
    return path[len(root) + 1 :].split("/")


def _files_below(folder: str) -> Iterator[ObjectInfo]:
    waiting = [folder]
    while waiting:
        try:
            entries = os.scandir(waiting.pop())
        except (FileNotFoundError, PermissionError):
            # Missing: nothing was written, or it was deleted. No permission: the caller looks up each file.
            continue
        with entries:
            for entry in entries:
                # Links to folders are not followed: their files are in another folder.
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                elif entry.is_file() and not entry.name.startswith(PREFIX):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        status = entry.stat()
                        yield ObjectInfo(Path(entry.path).as_uri(), status.st_size, None, status.st_mtime)


@contextmanager
def _translate_errors(place: str) -> Iterator[None]:
    try:
        yield
    except SourceError as error:
        from async_maps.filesystems.remote import RefusedError

        kind = ObjectError if isinstance(error, RefusedError) else StoreError
        raise kind(f"{printable(place)}: {error}") from error
    except OSError as error:
        where = printable(str(error.filename or place))
        raise StoreError(f"{where}: cannot be listed: {error.strerror or error}") from error
