"""Local files and objects behind one protocol: readers get a seekable binary file."""

from __future__ import annotations

import errno
import os
import stat
from hashlib import blake2b
from threading import Lock
from typing import TYPE_CHECKING, Protocol, cast

from async_maps.errors import SourceError, StoreError
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, BinaryIO

    from async_maps.filesystems.addresses import Address
    from async_maps.filesystems.remote import RemoteFilesystem
    from async_maps.filesystems.verdict import Verdict
    from async_maps.settings import S3Settings


class InaccessibleError(SourceError):
    """A file cannot be read now, which says nothing about its content: no permission, no connection.

    Attributes:
        verdict: whose fault it is; None if it is that of the file.
    """

    verdict: Verdict | None = None

    @classmethod
    def of(cls, verdict: Verdict) -> InaccessibleError:
        """Return the error of a failed request."""
        error = cls(verdict.reason, may_pass=verdict.may_pass)
        error.verdict = verdict
        return error


def verdict_of(error: BaseException | None) -> Verdict | None:
    """Return whose fault an error is if a request caused it; None for other errors."""
    while error is not None:
        if isinstance(error, InaccessibleError):
            return error.verdict
        error = error.__cause__ or error.__context__
    return None


class UnavailableError(StoreError):
    """No file of the place can be read now, because the credentials are refused: no file is to blame.

    Not a SourceError, which readers take for a fault of the file.
    """


class Filesystem(Protocol):
    """Opens files for readers. Thread-safe."""

    def open(self, path: str, /) -> BinaryIO:
        """Open a seekable file at its start.

        Raises:
            OSError: the file cannot be opened.
            SourceError: the file cannot be opened, with a reason of this package.
        """


class LocalFilesystem:
    """Opens local files."""

    def open(self, path: str) -> BinaryIO:
        """Open a file; refuse a pipe or a device, because reading it may block forever."""
        return open(path, "rb", opener=_open_without_waiting)


class OneFile:
    """Returns a file that is open already, at its start."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = cast("BinaryIO", file)

    def open(self, _path: str) -> BinaryIO:
        """Return the file."""
        self._file.seek(0)
        return self._file


class Filesystems:
    """Finds the filesystem of a path. Thread-safe."""

    def __init__(self, s3: S3Settings | None = None) -> None:
        self._disk = LocalFilesystem()
        self._settings = s3
        self._making = Lock()
        self._remote: dict[str, RemoteFilesystem] = {}
        self._closed = False

    def __enter__(self) -> Filesystems:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def of(self, path: str) -> Filesystem:
        """Return the filesystem of a path."""
        return self.remote(path) if is_remote(path) else self._disk

    def remote(self, path: str) -> RemoteFilesystem:
        """Return the filesystem of an address, which is created at the first call.

        Raises:
            SettingsError: the service of the address is not set up.
            SourceError: the address is not valid.
        """
        return self.at(parse_address(path))

    def at(self, address: Address) -> RemoteFilesystem:
        """Return the filesystem of an address, as :meth:`remote`."""
        place = address.account or address.scheme
        with self._making:
            if (found := self._remote.get(place)) is None:
                # The clients are slow to import, and most sources are on disk.
                from async_maps.filesystems.services import open_filesystem

                found = self._remote[place] = open_filesystem(address, self._settings)
                if self._closed:
                    found.close()
            return found

    def close(self) -> None:
        """Close the connections permanently."""
        with self._making:
            self._closed = True
            for filesystem in self._remote.values():
                filesystem.close()


def check_regular(mode: int, folder: bool = False) -> None:
    """Refuse anything but a regular file, or a folder, by its ``st_mode``."""
    if not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
        expected = "a folder" if folder else "a regular file"
        raise SourceError(f"expected {expected}, found {_kind(mode)}")


def file_fingerprint(status: os.stat_result) -> str:
    """Return the size and modification time of a file, as text; they change when the file does."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def folder_fingerprint(folder: str) -> str:
    """Return a digest of the paths, sizes and times of all files in a folder."""
    # A sum is independent of the order: no list of all files has to be sorted in memory.
    total = 0
    for line in _states(folder):
        total += int.from_bytes(blake2b(line, digest_size=16).digest(), "big")
    return f"{total % 2**128:032x}"


def _states(folder: str) -> Iterator[bytes]:
    left: list[tuple[str, tuple[tuple[int, int], ...]]] = [("", ())]
    while left:
        path, above = left.pop()
        status = os.stat(os.path.join(folder, path))
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            raise SourceError("a symbolic link in it points to a folder above it")
        with os.scandir(os.path.join(folder, path)) as children:
            for child in children:
                below = os.path.join(path, child.name)
                if child.is_dir():
                    left.append((below, (*above, identity)))
                else:
                    status = child.stat()
                    try:
                        check_regular(status.st_mode)
                    except SourceError as error:
                        raise SourceError(f"at {printable(below)}: {error}") from error
                    yield os.fsencode(f"{below}\0{status.st_size}-{status.st_mtime_ns}")


def _open_without_waiting(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe waits for a writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        check_regular(mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISREG: "a regular file",
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
    }
    return next((name for test, name in kinds.items() if test(mode)), "a device")
