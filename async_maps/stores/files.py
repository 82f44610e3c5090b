"""A folder as a store. Files are written in threads, each to a temporary file that is renamed: whole or not at all."""

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

from async_maps.errors import ExistsError, ObjectError, StoreError
from async_maps.keys import printable

if TYPE_CHECKING:
    from typing import BinaryIO

_LEFT_OVER_S = 60.0
"""A temporary file that nothing was written to for so long was left by a process that is gone."""

_LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""No space, no quota, read-only: the next file would fare no better."""


class FileStore:
    """Keeps each object as a file below a folder, which is made when the first one comes.

    With ``fsync`` each file and its name are forced to the disk before it counts: it survives a power cut, at a price.
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
        """The file's URL: ``file:///folder/key``, percent-encoded."""
        return (self._folder / key).as_uri()

    async def check(self) -> None:
        """Ask whether the folder, or where it would be made, can be written."""
        await to_thread.run_sync(self._check, limiter=self._threads)

    async def put(self, key: str, data: bytes) -> None:
        """Write the file; another of that key is replaced in one step, or left."""
        try:
            await to_thread.run_sync(self._write, key, data, limiter=self._threads)
        except OSError as error:
            kind = StoreError if error.errno in _LASTING else ObjectError
            raise kind(f"cannot write {printable(str(self._folder / key))}: {error.strerror}") from error

    def _check(self) -> None:
        existing = self._folder
        # Not Path.exists, which raises where it may not look.
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
                f"{what} is there already, and is left as it is: {printable(str(path))}", same=same, etag=None
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
    """A new file beside another, under a hidden name that tells whose it is to become.

    So what a killed process has left is found when its map is done again, and is gone then. Somebody else may be
    writing that very file at this moment: what is young is theirs, and ours gets a name that nobody else has.
    """
    digest = blake2b(os.fsencode(path.name), digest_size=12).hexdigest()
    temporary = path.parent / f".async-maps-{digest}"
    # Not from tempfile, whose files only their owner may read: who may read these is for the umask to say.
    with suppress(FileExistsError):
        return temporary, open(temporary, "xb")
    with suppress(FileNotFoundError):
        if time.time() - temporary.stat().st_mtime > _LEFT_OVER_S:
            temporary.unlink()
    temporary = path.parent / f".async-maps-{uuid4().hex}"
    return temporary, open(temporary, "xb")
