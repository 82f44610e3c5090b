"""What goes wrong with our SQLite files, as one sentence: which file, what is wrong with it, what to do."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, TypeAlias

from async_maps.errors import ManifestError
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

Doing: TypeAlias = Literal["opened", "read", "written"]

_ROOM = "make room, and run the same command again"
_FULL = f"its disk is full: {_ROOM}"
_FORBIDDEN = "no permission to write it, or in its folder, or the disk is read-only: name another file with --manifest"
_DAMAGED = "move it away, and run again: all maps are done anew, to the same locators"
_REASONS = {
    sqlite3.SQLITE_FULL: _FULL,
    sqlite3.SQLITE_READONLY: _FORBIDDEN,
    sqlite3.SQLITE_CANTOPEN: "no permission for it, or for its folder",
    sqlite3.SQLITE_BUSY: "another program has locked it: wait until that has ended, and run the same command again",
    sqlite3.SQLITE_NOTADB: "it is no SQLite file, or its beginning is damaged: name another, or move it away",
}  # fmt: skip
"""By SQLite's primary result codes."""
_SYSTEM_REASONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _FORBIDDEN),
    **dict.fromkeys((errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS), "its disk knows no locks: name a file on another"),
}


@contextmanager
def translate_sqlite_errors(what: str, doing: Doing) -> Iterator[None]:
    """Turn what goes wrong with a database into a ManifestError: with the reason, and what to do about it."""
    try:
        yield
    except (sqlite3.Error, OSError, ValueError) as error:
        raise ManifestError(f"{what} cannot be {doing}: {_reason(error, doing)}") from error


def _reason(error: sqlite3.Error | OSError | ValueError, doing: Doing) -> str:
    if isinstance(error, OSError):
        return _SYSTEM_REASONS.get(error.errno or 0, error.strerror or str(error))
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        # Ours, not the file's.
        return str(error)
    # Errors of the module itself have no code.
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL and doing == "read":
        # The one thing that is written meanwhile.
        return f"the disk of temporary files is full: let TMPDIR name another folder, or {_ROOM}"
    # It may quote what it found, which may be anything. The rest is text or tables that are not as we write them.
    said = printable(str(error))
    if code == sqlite3.SQLITE_IOERR:
        name = getattr(error, "sqlite_errorname", "")
        return f"its disk fails ({said}, {name}): once that is mended, run the same command again"
    return _REASONS.get(code, f"it is damaged ({said}): {_DAMAGED}")
