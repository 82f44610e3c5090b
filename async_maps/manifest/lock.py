"""The lock that a run holds on its manifest, so that no second one writes it. It blocks: call it in a thread.

It is a file beside the manifest that the kernel locks for as long as the run has it open: however the run ends, kill -9
too, the lock is gone with it, and what may be left of the file is no lock. It is not on the manifest itself, as a
process that closes any descriptor of an SQLite file loses SQLite's own locks on it. Readers do not ask for it.
"""

from __future__ import annotations

import fcntl
import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from async_maps.errors import ManifestError
from async_maps.keys import printable

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

_MOST_SAID = 300


class RunLock:
    """Held from its making until it is released; its manifest need not exist.

    Raises ManifestError if another run holds it, and OSError if its file cannot be made or the disk knows no locks.
    """

    def __init__(self, manifest: Path) -> None:
        # One file has one lock, under every name and through every link.
        self._path = f"{os.path.realpath(manifest)}-lock"
        while True:
            self._file: BinaryIO = open(self._path, "a+b", buffering=0)  # noqa: SIM115  # held open
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                is_ours = True
            except BlockingIOError:
                is_ours = False
            except BaseException:
                self._file.close()
                raise
            # Whoever had it may have removed it after we opened it: then it locks nothing.
            if self._is_there():
                break
            self._file.close()
        if not is_ours:
            with self._file:
                self._file.seek(0)
                holder = printable(self._file.read(_MOST_SAID).decode(errors="replace").strip())
            raise ManifestError(
                f"the manifest {manifest} is in use by another run{f' ({holder})' if holder else ''}: "
                "wait until that one has ended, or name another file with --manifest"
            )
        self._introduce()

    def release(self) -> None:
        """Let others have it, and leave no file."""
        with self._file:
            try:
                # While it is still locked: nobody else's can be removed.
                if self._is_there():
                    os.unlink(self._path)
            except OSError:
                # It stays, and locks nothing.
                return

    def _introduce(self) -> None:
        """Write the holder's pid and host into the file, for the message to others."""
        holder = f"process {os.getpid()} on {socket.gethostname()}, since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
        try:
            self._file.truncate(0)
            self._file.write(holder.encode())
        except OSError:
            # On a full disk it is locked without a word.
            return

    def _is_there(self) -> bool:
        """Whether the file that is open is the one that others would open."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path))
        except FileNotFoundError:
            return False
