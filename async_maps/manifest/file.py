"""Opens, locks, reads and writes the file of a manifest. Everything here blocks."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.errors import ManifestError
from async_maps.manifest.lock import RunLock
from async_maps.manifest.schema import APPLICATION_ID, SCHEMA, VERSION
from async_maps.manifest.sqlite_errors import translate_sqlite_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from os import PathLike
    from typing import Self

    from async_maps.manifest.sqlite_errors import Doing

_NO_FILE = ":memory:"
_MERGE_TRIES, _MERGE_WAIT_S = 10, 0.05
_NEED_LOG = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}


class ManifestFile:
    """An SQLite file with the tables of a manifest. While it is open for writing, other writers are locked out.

    The file is created if it does not exist, unless ``read_only``. The path ":memory:" is a database without a file.

    Raises:
        ManifestError: the file cannot be opened or created, is not a manifest, or another run is writing it. All
            methods raise it if the file cannot be read or written.
    """

    def __init__(self, path: str | PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._file: os.stat_result | None = None
        place = _NO_FILE
        if path != _NO_FILE:
            self._refuse_place()
            place = f"{self.path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        with self._translated("opened"), ExitStack() as opened:
            if path != _NO_FILE and not read_only:
                opened.callback(RunLock(self.path).release)
            self._database = self._connect(place)
            opened.callback(self._database.close)
            self._prepare()
            if path != _NO_FILE:
                self._file = self.path.stat()
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and merge the write-ahead log into it, so that one file is left."""
        with self._opened:
            if not self._read_only:
                self._merge_log()

    def _merge_log(self) -> None:
        for _ in range(_MERGE_TRIES):
            try:
                self._database.execute("PRAGMA journal_mode = DELETE")
            except sqlite3.Error as error:
                # If the disk is full or a reader stays, the log is merged at the next close.
                if getattr(error, "sqlite_errorcode", 0) & 0xFF not in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
                    return
                # A reader such as `status` has it open for a moment.
                time.sleep(_MERGE_WAIT_S)
            else:
                return

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """Read the same state in all calls inside the ``with`` block, though a run writes."""
        with self._reading() as database, database:
            database.execute("BEGIN")
            yield

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._translated("read"):
            yield self._database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._translated("written"):
            self._refuse_other_file()
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database

    def _connect(self, place: str) -> sqlite3.Connection:
        # Several threads use it, but one at a time: each call is awaited before the next.
        connect = partial(sqlite3.connect, uri=True, check_same_thread=False, isolation_level=None)
        database = connect(place)
        try:
            database.execute("PRAGMA application_id")
        except sqlite3.DatabaseError as error:
            database.close()
            # A copy that was made during a run, in a folder where SQLite cannot create the files beside it.
            needs_log = error.sqlite_errorcode & 0xFF in _NEED_LOG and os.access(self.path, os.R_OK)
            if not self._read_only or not needs_log:
                raise
            if os.path.exists(log := f"{os.path.realpath(self.path)}-wal"):
                raise ManifestError(
                    f"the manifest {self.path} cannot be opened: its log {log} cannot be read in a folder that cannot "
                    "be written: copy both to another folder"
                ) from None
            return connect(f"{place}&immutable=1")
        return database

    def _prepare(self) -> None:
        ours = self._pragma("application_id") == APPLICATION_ID
        if not ours and (self._read_only or self._database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()):
            kind = "an SQLite file, but not a manifest" if self.path.stat().st_size else "an empty file, not a manifest"
            raise ManifestError(f"{self.path} is {kind}: choose another manifest file")
        if ours and (version := self._pragma("user_version")) != VERSION:
            raise ManifestError(
                f"{self.path} has manifest schema {version}, but this version of async-maps reads schema {VERSION}: "
                "choose another manifest file"
            )
        if self._read_only:
            return
        self._database.execute("PRAGMA journal_mode = WAL")
        # With WAL, a crash loses nothing; a power failure may lose the last commits, whose maps the next run repeats.
        self._database.execute("PRAGMA synchronous = NORMAL")
        if not ours:
            self._database.executescript(SCHEMA)

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    def _refuse_place(self) -> None:
        """Refuse paths for which SQLite has no clear error."""
        if self._read_only and not os.path.exists(self.path):
            raise ManifestError(f"no such manifest: {self.path}")
        if not os.path.isdir(self.path.absolute().parent):
            raise ManifestError(
                f"the manifest {self.path} cannot be opened: the folder {self.path.parent} does not exist"
            )
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise ManifestError(f"the manifest {self.path} cannot be opened: it is not a file")

    def _refuse_other_file(self) -> None:
        """Raise ManifestError if the file was replaced: SQLite would write to a file that has no name anymore."""
        if self._file is None:
            return
        try:
            is_there = os.path.samestat(self._file, os.stat(self.path))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise ManifestError(
                f"the manifest {self.path} was moved, deleted or replaced while it was in use: run again to upload the "
                "maps that it does not list as done",
                may_pass=True,
            )

    def _translated(self, doing: Doing) -> AbstractContextManager[None]:
        return translate_sqlite_errors(self.path, doing)
