"""A folder as a store. Files are written atomically, in threads: each to a temporary file that is renamed."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from threading import Lock

from anyio import CapacityLimiter, to_thread

from async_maps.errors import WHOLE_DISK, ExistsError, ObjectError, StoreError, system_reason
from async_maps.filesystems.below import folder_below
from async_maps.filesystems.spelling import Spelling
from async_maps.filesystems.temporary import sweep, temporary_name
from async_maps.keys import printable

_LASTING = WHOLE_DISK | {errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that every further file would have: those of the disk, or no open file or memory is left."""
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}
"""The answers to a hard link of disks that have none."""


class FileStore:
    """Stores each object as a file in a folder, which is created with the first file.

    With ``fsync`` each file and its folder are flushed to the disk, so that it survives a power failure; this is slow.
    """

    prefix = ""

    def __init__(
        self, folder: str | os.PathLike[str], *, replace: bool = True, fsync: bool = False, concurrency: int = 32
    ) -> None:
        self._folder = Path(os.path.abspath(folder))
        self._replace = replace
        self._fsync = fsync
        self.destination = self._folder.as_uri()
        self.identity = self.destination
        self._threads = CapacityLimiter(concurrency)
        self._sweeping = Lock()
        self._swept: set[str] = set()
        self._device: int | None = None

    def locator(self, key: str) -> str:
        """Return the file's URL, ``file:///folder/key``, percent-encoded."""
        return (self._folder / key).as_uri()

    def spelling(self) -> Spelling | None:
        """Return how the disk compares names, or None if it distinguishes all; blocks."""
        return Spelling.of(str(self._existing()))

    async def check(self) -> None:
        """Check that the folder, or the one in which it would be created, can be written."""
        await to_thread.run_sync(self._check, limiter=self._threads)

    async def has(self, key: str) -> bool:
        """Return whether a file, or something else, has this name."""
        return await to_thread.run_sync(os.path.lexists, self._folder / key, limiter=self._threads)

    async def put(self, key: str, data: bytes) -> None:
        """Write a file atomically; an existing one is replaced, or raises ExistsError without ``replace``."""
        try:
            await to_thread.run_sync(self._write, key, data, limiter=self._threads)
        except OSError as error:
            kind = StoreError if error.errno in _LASTING else ObjectError
            place = self._folder if error.errno in WHOLE_DISK else self._folder / key
            raise kind(cannot_write(place, error)) from error
        except _ExistsHereError as error:
            what, where = "the same file" if error.same else "another file", printable(str(self._folder / key))
            raise ExistsError(
                f"{what} already exists, and is not replaced: {where}", same=error.same, etag=None
            ) from None

    def _existing(self) -> Path:
        """Return the folder, or the existing one in which it would be created."""
        existing = self._folder
        # Not Path.exists, which raises a PermissionError in a folder that cannot be read.
        while not os.path.lexists(existing):
            existing = existing.parent
        return existing

    def _check(self) -> None:
        existing = self._existing()
        if not os.path.isdir(existing):
            raise StoreError(f"cannot write to {self._folder}: {existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            if os.statvfs(existing).f_flag & os.ST_RDONLY:
                raise StoreError(cannot_write(self._folder, OSError(errno.EROFS, os.strerror(errno.EROFS))))
            raise StoreError(f"cannot write to {self._folder}: no permission for {existing}")

    def _write(self, key: str, data: bytes) -> None:
        *folders, name = key.split("/")
        self._refuse_other_disk()
        with folder_below(str(self._folder), folders, create=True) as folder:
            self._sweep("/".join(folders))
            self._write_in(folder, name, data)

    def _refuse_other_disk(self) -> None:
        """Raise OSError if the folder's disk is another than before: it was unmounted, and an empty folder is left."""
        with suppress(FileNotFoundError):
            device = os.stat(self._folder).st_dev
            if self._device is None:
                self._device = device
            elif self._device != device:
                raise OSError(errno.ENODEV, "the disk that was mounted there is gone")

    def _write_in(self, folder: int, name: str, data: bytes) -> None:
        temporary = temporary_name()
        # Not by tempfile, whose files only the owner can read: the umask must decide who can read overlays.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        file = open(os.open(temporary, flags, 0o666, dir_fd=folder), "wb")  # noqa: SIM115  # closed before the rename
        try:
            with file:
                file.write(data)
                if self._fsync:
                    file.flush()
                    os.fsync(file.fileno())
            if self._replace:
                os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                rename_to_new(temporary, name, folder)
        except FileExistsError:
            os.unlink(temporary, dir_fd=folder)
            raise _exists(folder, name, data) from None
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
        if self._fsync:
            readable = os.open(".", os.O_RDONLY, dir_fd=folder)
            try:
                os.fsync(readable)
            finally:
                os.close(readable)

    def _sweep(self, folder: str) -> None:
        """Delete what dead processes have left in a folder, before the first file is written there."""
        with self._sweeping:
            is_first = folder not in self._swept
            self._swept.add(folder)
        if is_first:
            sweep(str(self._folder / folder))


def cannot_write(place: Path, error: OSError) -> str:
    """Return the sentence for a file or folder that cannot be written."""
    return f"cannot write {printable(str(place))}: {system_reason(error)}"


def rename_to_new(temporary: str, name: str, folder: int | None = None) -> None:
    """Give a file a name that no file has yet; raise FileExistsError if one has it.

    Without hard links, the name is taken by an empty file for a moment, in which a kill leaves it empty.
    """
    try:
        os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666, dir_fd=folder))
        os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
    else:
        os.unlink(temporary, dir_fd=folder)


def _exists(folder: int, name: str, data: bytes) -> _ExistsHereError:
    """Return the error for a file that exists already; a link is another file."""
    try:
        with open(os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder), "rb") as file:
            return _ExistsHereError(same=file.read(len(data) + 1) == data)
    except OSError:
        return _ExistsHereError(same=False)


class _ExistsHereError(Exception):
    def __init__(self, *, same: bool) -> None:
        super().__init__()
        self.same = same
