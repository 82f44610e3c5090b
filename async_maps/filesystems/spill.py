"""A private SQLite database for data that may not fit into memory. Everything here blocks."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING

from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

    from async_maps.errors import AsyncMapsError


class Spill:
    """A database in memory that SQLite spills to a temporary file and deletes at the end. Thread-safe.

    Args:
        what: the content for messages, such as ``"the comparison"``.
        schema: the statements that create the tables.
        error: the class of the errors that the methods raise, for instance when the disk is full.
    """

    def __init__(self, what: str, schema: str, error: type[AsyncMapsError]) -> None:
        self._what = what
        self._error = error
        self._lock = Lock()
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.executescript(schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give this thread the database for one transaction: the ``with`` block."""
        with self._lock:
            try:
                with self._database:
                    self._database.execute("BEGIN")
                    yield self._database
            except sqlite3.Error as error:
                is_full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
                reason = "the disk is full: free some space, and run the same command again"
                raise self._error(
                    f"the temporary file of {self._what} (in TMPDIR) cannot be written: "
                    f"{reason if is_full else printable(str(error))}",
                    may_pass=is_full,
                ) from error

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.transaction() as database:
            return database.execute(query, values).fetchall()
