"""A folder as a store. Files are written in threads, each to a temporary file that is renamed: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from anyio import to_thread

from async_maps.errors import ObjectError, StoreError


class FileStore:
    """Keeps each object as a file below a folder, which is made when the first one comes.

    Args:
        folder: where.
        fsync: force each file and its name to the disk before it counts: survives a power cut, at a price.
    """

    prefix = ""

    def __init__(self, folder: str | os.PathLike[str], *, fsync: bool = False) -> None:
        self._folder = Path(os.path.abspath(folder))
        self._fsync = fsync
        self.destination = self._folder.as_uri()

    def locator(self, key: str) -> str:
        """The file's URL: ``file:///folder/key``, percent-encoded."""
        return (self._folder / key).as_uri()

    async def check(self) -> None:
        """Ask whether the folder, or where it would be made, can be written.

        Raises:
            StoreError: it cannot.
        """
        await to_thread.run_sync(self._check)

    async def put(self, key: str, data: bytes) -> None:
        """Write the file; another of that key is replaced in one step.

        Raises:
            ObjectError: it cannot be written.
        """
        try:
            await to_thread.run_sync(self._write, key, data)
        except OSError as error:
            raise ObjectError(f"cannot write {self._folder / key}: {error.strerror}") from error

    def _check(self) -> None:
        existing = self._folder
        while not existing.exists():
            existing = existing.parent
        if not existing.is_dir():
            raise StoreError(f"cannot write to {self._folder}: {existing} is not a folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise StoreError(f"cannot write to {self._folder}: no permission for {existing}")

    def _write(self, key: str, data: bytes) -> None:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=".async-maps-", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                # mkstemp makes files that only their owner may read; these are for others too.
                os.fchmod(file.fileno(), 0o644)
                if self._fsync:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        if self._fsync:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
