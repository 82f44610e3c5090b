"""Turns errors of SQLite files into one sentence: the file, the problem, and what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Literal, TypeAlias

from async_maps.errors import ManifestError
from async_maps.filesystems.temporary import temporary_name
from async_maps.keys import printable
from async_maps.machine.shortage import describe_shortage, is_out_of_files, open_files_limit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Doing: TypeAlias = Literal["opened", "read", "written"]

_FILES = 6
"""The number of files that SQLite opens for a manifest, and two more."""
_ROOM = "free some space, and run the same command again"
_FULL = f"the disk is full: {_ROOM}"
_LEAST_FREE = 2**20
"""With less free space, in bytes, a failed write is blamed on that."""
_FORBIDDEN = "no permission to write to the file or its folder, or the disk is read-only: choose another manifest file"
_NO_LOCKS = "this disk does not support SQLite's locks: choose a path on a local disk with --manifest"
_DAMAGED = "move it away, and run again: all maps are uploaded again, to the same locators"
_REASONS = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_CANTOPEN: "no permission for the file or its folder",
    sqlite3.SQLITE_BUSY: "another program has locked it: wait until that has ended, and run the same command again",
    sqlite3.SQLITE_PROTOCOL: _NO_LOCKS,
    sqlite3.SQLITE_NOLFS: "the disk takes no files of this size: choose a path on another disk with --manifest",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite file, or is damaged: choose another manifest file, or move it away",
}  # fmt: skip
"""By SQLite's primary result code."""
_LOCKS = {
    sqlite3.SQLITE_IOERR_LOCK, sqlite3.SQLITE_IOERR_UNLOCK, sqlite3.SQLITE_IOERR_RDLOCK, sqlite3.SQLITE_IOERR_BLOCKED,
    sqlite3.SQLITE_IOERR_CHECKRESERVEDLOCK, sqlite3.SQLITE_IOERR_SHMOPEN, sqlite3.SQLITE_IOERR_SHMSIZE,
    sqlite3.SQLITE_IOERR_SHMLOCK, sqlite3.SQLITE_IOERR_SHMMAP,
}  # fmt: skip
"""Extended result codes of locks, and of the shared memory that the write-ahead log needs (SQLite, "Result codes")."""
_MAY_PASS = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_IOERR,
}
_SYSTEM_REASONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
    **dict.fromkeys((errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS), _NO_LOCKS),
}


@contextmanager
def translate_sqlite_errors(path: Path, doing: Doing) -> Iterator[None]:
    """Turn errors of the manifest at a path into a ManifestError with the reason and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        # Errors of the module itself have no code.
        code = getattr(error, "sqlite_errorcode", 0)
        shortage = _shortage_of_files(error, code & 0xFF)
        reason = shortage or _reason(error, code, path, doing)
        may_pass = shortage is not None or (code & 0xFF in _MAY_PASS and reason != _NO_LOCKS)
        raise ManifestError(f"the manifest {path} cannot be {doing}: {reason}", may_pass=may_pass) from error


def _shortage_of_files(error: Exception, primary: int) -> str | None:
    if is_out_of_files(error):
        return describe_shortage(error)
    if primary == sqlite3.SQLITE_CANTOPEN and (limit := open_files_limit()) and limit.left < _FILES:
        # SQLite does not tell this error from a lack of permission.
        return describe_shortage(OSError(errno.EMFILE, ""))
    return None


def _reason(error: sqlite3.Error | OSError | ValueError, code: int, path: Path, doing: Doing) -> str:
    if isinstance(error, OSError):
        return _SYSTEM_REASONS.get(error.errno or 0, error.strerror or str(error))
    # The text may quote a damaged file.
    primary, said = code & 0xFF, printable(str(error))
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        # A programming error, not a problem of the file.
        return said
    if primary in {sqlite3.SQLITE_ERROR, 0}:
        return f"its tables are not those of a manifest ({said}): choose another manifest file, or move it away"
    if primary == sqlite3.SQLITE_CORRUPT:
        return f"it is damaged ({said}): {_DAMAGED}"
    return _of_disk(primary, code, path, doing) or _REASONS.get(primary) or _failed(error, said)


def _of_disk(primary: int, code: int, path: Path, doing: Doing) -> str | None:
    if primary == sqlite3.SQLITE_FULL and doing == "read":
        # During a read, only temporary files are written.
        return f"the disk of temporary files is full: set TMPDIR to another folder, or {_ROOM}"
    if primary in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_IOERR}:
        return _by_disk(path) or (_NO_LOCKS if code in _LOCKS else None)
    return None


def _failed(error: sqlite3.Error | ValueError, said: str) -> str:
    name = getattr(error, "sqlite_errorname", "")
    return f"the disk failed ({said}, {name}): run the same command again when it works"


def _by_disk(path: Path) -> str | None:
    """Ask the disk what SQLite does not say: whether it is there, has space, and has locks; None if it has."""
    folder = path.absolute().parent
    try:
        disk = os.statvfs(folder)
        os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        return _SYSTEM_REASONS.get(error.errno or 0) or f"the disk of {folder} failed: {error.strerror}"
    if disk.f_bavail * disk.f_frsize < _LEAST_FREE:
        return _FULL
    probe = folder / temporary_name()
    with suppress(OSError), open(probe, "xb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return _SYSTEM_REASONS.get(error.errno or 0)
        finally:
            os.unlink(probe)
    return None
