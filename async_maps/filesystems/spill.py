"""Data that may not fit into memory, in a private SQLite database. It blocks: call it in a thread."""

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
    """A database that SQLite spills to a temporary file of its own and deletes. Threads take turns.

    Args:
        what: its content, for messages: ``"the comparison"``.
        schema: the statements that make its tables.
        error: raised by its methods when it fails: the folder of temporary files has no room, for instance.
    """

    def __init__(self, what: str, schema: str, error: type[AsyncMapsError]) -> None:
        self._what = what
        self._error = error
        self._turn = Lock()
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.executescript(schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._turn:
            self._database.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Lend the database to this thread; the ``with`` block's writes are kept whole, or not at all."""
        with self._turn:
            try:
                with self._database:
                    self._database.execute("BEGIN")
                    yield self._database
            except sqlite3.Error as error:
                is_full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
                reason = "its disk is full: make room, and run the same command again"
                raise self._error(
                    f"{self._what}, among the temporary files (TMPDIR says where), cannot be written: "
                    f"{reason if is_full else printable(str(error))}"
                ) from error

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Return all rows of a query."""
        with self.transaction() as database:
            return database.execute(query, values).fetchall()
