"""The file of a manifest: found, locked, opened, read and written. It blocks: call it in a thread."""

from __future__ import annotations

import os
import sqlite3
from contextlib import ExitStack, contextmanager, suppress
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


class ManifestFile:
    """An SQLite file with the tables of a manifest. It locks out other writers while it is open to be written.

    It is made if it does not exist, or must exist and stays as it is if ``read_only``; the path ":memory:" is no file.
    Raises ManifestError if it cannot be opened or made, is no manifest of ours, or another run is writing it; every
    method does if the file cannot be read or written.
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
            # Threads take turns: each call is awaited before the next.
            self._database = sqlite3.connect(place, uri=True, check_same_thread=False, isolation_level=None)
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
        """Close the file, and leave it as one: without the files beside it that a write-ahead log has."""
        with self._opened:
            if not self._read_only:
                # Somebody reads it, or its disk is full: then they stay until it is closed again.
                with suppress(sqlite3.Error):
                    self._database.execute("PRAGMA journal_mode = DELETE")

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """Lend the database, to be read."""
        with self._translated("read"):
            yield self._database

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Lend the database; what the ``with`` block writes is kept whole, or not at all."""
        with self._translated("written"):
            self._refuse_other_file()
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield self._database

    def _prepare(self) -> None:
        ours = self._pragma("application_id") == APPLICATION_ID
        if not ours and (self._read_only or self._database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()):
            raise ManifestError(f"{self.path} is an SQLite file, but no manifest of ours: name another with --manifest")
        if ours and (version := self._pragma("user_version")) != VERSION:
            raise ManifestError(
                f"{self.path} has the manifest schema {version}, this version of async-maps reads schema {VERSION}: "
                "name another file with --manifest"
            )
        if self._read_only:
            return
        self._database.execute("PRAGMA journal_mode = WAL")
        # With WAL a crash of the process loses nothing; a power cut may lose the last commits, whose maps are redone.
        self._database.execute("PRAGMA synchronous = NORMAL")
        if not ours:
            self._database.executescript(SCHEMA)

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    def _refuse_place(self) -> None:
        """Refuse what SQLite would take for a manifest, or would not explain."""
        if self._read_only and not os.path.exists(self.path):
            raise ManifestError(f"no such manifest: {self.path}")
        if not os.path.isdir(self.path.absolute().parent):
            raise ManifestError(f"the manifest {self.path} cannot be opened: there is no folder {self.path.parent}")
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise ManifestError(f"the manifest {self.path} cannot be opened: it is not a file")

    def _refuse_other_file(self) -> None:
        """SQLite would go on writing to a file that nobody will find again."""
        if self._file is None:
            return
        try:
            is_there = os.path.samestat(self._file, os.stat(self.path))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise ManifestError(
                f"the manifest {self.path} was moved, deleted or replaced while it was in use: run again to do what it "
                "does not know as done"
            )

    def _translated(self, doing: Doing) -> AbstractContextManager[None]:
        return translate_sqlite_errors(f"the manifest {self.path}", doing)
