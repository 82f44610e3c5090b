"""The lock of a manifest, which only one run can write. Readers do not need it. Everything here blocks.

It is a kernel lock (flock) on a file next to the manifest. The kernel releases it when the run ends, even by kill -9; a
file that is left is not a lock. It is not on the manifest itself: when a process closes any descriptor of an SQLite
file, it loses SQLite's own locks on it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import ManifestError
from async_maps.keys import printable

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_MAX_HOLDER_BYTES = 300
_HOLDER = re.compile(rb"process \d+ on |process \d*( on?)?$|p(r(o(c(e(ss?)?)?)?)?)?$|$")
"""The start of a lock's text, of which a full disk may have cut the rest."""
_TIME = "%Y-%m-%d %H:%M:%S"
_SINCE = re.compile(r"since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) UTC")
_WAIT_S, _WAITS = 0.01, 1000
"""The wait for readers that look for the holder, and have a shared lock meanwhile."""


class Holder(NamedTuple):
    """The run that writes a manifest.

    Attributes:
        text: its process, host and start, for messages; empty if it could not write them.
        since: its start, rounded down to a second; None if unknown.
        claims_since: the start of the first of the killed runs that it continues, which left objects without a row; its
            own start if there is none.
    """

    text: str
    since: datetime | None
    claims_since: datetime | None


def holder_of(manifest: str | os.PathLike[str]) -> Holder | None:
    """Return the run that writes a manifest now, or None. Nothing is written, and no run is disturbed."""
    try:
        with open(f"{os.path.realpath(manifest)}-lock", "rb", buffering=0, opener=_open_without_waiting) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _written(file)
    except OSError:
        return None
    return None


def _open_without_waiting(path: str, flags: int) -> int:
    # A pipe or a link could lie there.
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOFOLLOW)


def _written(file: BinaryIO) -> Holder:
    text = printable(file.read(_MAX_HOLDER_BYTES).decode(errors="replace").strip())
    starts = [datetime.fromisoformat(f"{start}+00:00") for start in _SINCE.findall(text)]
    return Holder(text, *((starts[0], starts[-1]) if starts else (None, None)))


class RunLock:
    """A lock that is held from its creation to its release. The manifest need not exist.

    Raises ManifestError if another run holds it or its file is not a lock, and OSError if its file cannot be created or
    locked.
    """

    def __init__(self, manifest: Path) -> None:
        # realpath: a manifest has one lock, even through symbolic links.
        self._path = f"{os.path.realpath(manifest)}-lock"
        while True:
            self._file = self._open()
            try:
                self._refuse_foreign()
                is_ours = _locked(self._file)
            except BaseException:
                self._file.close()
                raise
            # The previous holder may have deleted the file after this opened it: then open the new one.
            if self._is_there():
                break
            self._file.close()
        if not is_ours:
            with self._file:
                self._file.seek(0)
                holder = _written(self._file).text
            raise ManifestError(
                f"the manifest {manifest} is in use by another run{f' ({holder})' if holder else ''}: "
                "wait until it has ended, or choose another manifest file",
                may_pass=True,
            )
        self._write_holder()

    def _open(self) -> BinaryIO:
        """Open the file, but follow no link and wait for no pipe: the lock must not change a file of another kind."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            return open(os.open(self._path, flags, 0o666), "a+b", buffering=0)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._foreign("a symbolic link") from None
            if os.path.lexists(self._path) and not os.path.isfile(self._path):
                raise self._foreign("not a file") from None
            raise

    def _refuse_foreign(self) -> None:
        """Raise ManifestError unless the open file is new, or was written by a run."""
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise self._foreign("not a file")
        if status.st_nlink > 1:
            raise self._foreign("a hard link to another file")
        self._file.seek(0)
        if not _HOLDER.match(self._file.read(_MAX_HOLDER_BYTES).strip()):
            raise self._foreign("a file with other content")

    def _foreign(self, kind: str) -> ManifestError:
        return ManifestError(
            f"the manifest cannot be locked: {self._path} is {kind}, not a lock of async-maps: move it away, or choose "
            "another manifest file"
        )

    def release(self) -> None:
        """Release the lock, and delete its file."""
        with self._file:
            try:
                # Deleted before the unlock, so that it cannot be the file of the next holder.
                if self._is_there():
                    os.unlink(self._path)
            except OSError:
                # The file stays, but is not locked.
                return

    def _write_holder(self) -> None:
        """Write the holder's pid and host into the file, for the error message of other runs."""
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):{_TIME}} UTC"
        self._file.seek(0)
        # A run that ends deletes its file, so the run of this text was killed.
        if killed := _written(self._file).claims_since:
            holder += f", after a killed run since {killed:{_TIME}} UTC"
        try:
            self._file.truncate(0)
            self._file.write(holder.encode())
        except OSError:
            # The disk is full: the lock works without the text.
            return

    def _is_there(self) -> bool:
        """Whether the open file still has its name, so that other runs open the same file."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.lstat(self._path))
        except FileNotFoundError:
            return False


def _locked(file: BinaryIO) -> bool:
    for _ in range(_WAITS):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            fcntl.flock(file, fcntl.LOCK_UN)
            time.sleep(_WAIT_S)
        else:
            return True
    return False
