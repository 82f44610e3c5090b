"""A folder as a store. Files are written atomically, in threads: each to a temporary file that is renamed."""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from anyio import CapacityLimiter, to_thread

from async_maps.errors import ExistsError, ObjectError, StoreError, system_reason
from async_maps.keys import printable

if TYPE_CHECKING:
    from typing import BinaryIO

_LEFT_OVER_S = 60.0
"""A temporary file that is older than this, in seconds, was left by a killed process."""

_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Errors that every further file would have: no space, no quota, a read-only disk, no open file or memory left."""


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

    def locator(self, key: str) -> str:
        """Return the file's URL, ``file:///folder/key``, percent-encoded."""
        return (self._folder / key).as_uri()

    async def check(self) -> None:
        """Check that the folder, or the one in which it would be created, can be written."""
        await to_thread.run_sync(self._check, limiter=self._threads)

    async def put(self, key: str, data: bytes) -> None:
        """Write a file atomically; an existing one is replaced, or raises ExistsError without ``replace``."""
        try:
            await to_thread.run_sync(self._write, key, data, limiter=self._threads)
        except OSError as error:
            kind = StoreError if error.errno in _LASTING else ObjectError
            raise kind(f"cannot write {printable(str(self._folder / key))}: {system_reason(error)}") from error

    def _check(self) -> None:
        existing = self._folder
        # Not Path.exists, which raises a PermissionError in a folder that cannot be read.
        while not os.path.lexists(existing):
            existing = existing.parent
        if not os.path.isdir(existing):
            raise StoreError(f"cannot write to {self._folder}: {existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise StoreError(f"cannot write to {self._folder}: no permission for {existing}")

    def _write(self, key: str, data: bytes) -> None:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary, file = _create_beside(path)
        try:
            with file:
                file.write(data)
                if self._fsync:
                    file.flush()
                    os.fsync(file.fileno())
            if self._replace:
                os.replace(temporary, path)
            else:
                os.link(temporary, path)
                temporary.unlink()
        except FileExistsError:
            temporary.unlink()
            same = path.read_bytes() == data
            what = "the same file" if same else "another file"
            raise ExistsError(
                f"{what} already exists, and is not replaced: {printable(str(path))}", same=same, etag=None
            ) from None
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        if self._fsync:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _create_beside(path: Path) -> tuple[Path, BinaryIO]:
    """Create a hidden temporary file in the same folder, whose name depends on the name of the final file.

    So a file that a killed process left is found and deleted when its map is processed again. A young file may belong
    to another process that is writing the same object; then the name is random.
    """
    digest = blake2b(os.fsencode(path.name), digest_size=12).hexdigest()
    temporary = path.parent / f".async-maps-{digest}"
    # Not by tempfile, whose files only the owner can read: the umask must decide who can read overlays.
    with suppress(FileExistsError):
        return temporary, open(temporary, "xb")
    with suppress(FileNotFoundError):
        if time.time() - temporary.stat().st_mtime > _LEFT_OVER_S:
            temporary.unlink()
    temporary = path.parent / f".async-maps-{uuid4().hex}"
    return temporary, open(temporary, "xb")
