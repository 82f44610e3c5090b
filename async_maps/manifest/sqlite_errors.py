"""Turns errors of SQLite files into one sentence: the file, the problem, and what to do."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from async_maps.errors import ManifestError
from async_maps.keys import printable
from async_maps.machine.shortage import describe_shortage, is_out_of_files, open_files_limit

if TYPE_CHECKING:
    from collections.abc import Iterator

Doing: TypeAlias = Literal["opened", "read", "written"]

_FILES = 6
"""The number of files that SQLite opens for a manifest, and two more."""
_ROOM = "free some space, and run the same command again"
_FULL = f"the disk is full: {_ROOM}"
_FORBIDDEN = "no permission to write to the file or its folder, or the disk is read-only: choose another manifest file"
_DAMAGED = "move it away, and run again: all maps are uploaded again, to the same locators"
_REASONS = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_CANTOPEN: "no permission for the file or its folder",
    sqlite3.SQLITE_BUSY: "another program has locked it: wait until that has ended, and run the same command again",
    sqlite3.SQLITE_NOTADB: "it is not an SQLite file, or is damaged: choose another manifest file, or move it away",
}  # fmt: skip
"""By SQLite's primary result code."""
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
    **dict.fromkeys((errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS), "the disk has no locks: use another disk"),
}


@contextmanager
def translate_sqlite_errors(what: str, doing: Doing) -> Iterator[None]:
    """Turn errors of a database into a ManifestError with the reason and what to do."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        # Errors of the module itself have no code.
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        shortage = _shortage_of_files(error, code)
        reason = shortage or _reason(error, code, doing)
        may_pass = shortage is not None or code in _MAY_PASS
        raise ManifestError(f"{what} cannot be {doing}: {reason}", may_pass=may_pass) from error


def _shortage_of_files(error: Exception, code: int) -> str | None:
    if is_out_of_files(error):
        return describe_shortage(error)
    if code == sqlite3.SQLITE_CANTOPEN and (limit := open_files_limit()) and limit.left < _FILES:
        # SQLite does not tell this error from a lack of permission.
        return describe_shortage(OSError(errno.EMFILE, ""))
    return None


def _reason(error: sqlite3.Error | OSError | ValueError, code: int, doing: Doing) -> str:
    if isinstance(error, OSError):
        return _SYSTEM_REASONS.get(error.errno or 0, error.strerror or str(error))
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        # A programming error, not a problem of the file.
        return str(error)
    if code == sqlite3.SQLITE_FULL and doing == "read":
        # During a read, only temporary files are written.
        return f"the disk of temporary files is full: set TMPDIR to another folder, or {_ROOM}"
    # The text may quote the damaged file. All other errors mean unexpected tables or text in them.
    said = printable(str(error))
    if code == sqlite3.SQLITE_IOERR:
        name = getattr(error, "sqlite_errorname", "")
        return f"the disk failed ({said}, {name}): run the same command again when it works"
    return _REASONS.get(code, f"it is damaged ({said}): {_DAMAGED}")
