"""A manifest that is made of the rows of an earlier one, to run its failed maps again. Everything here blocks."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from async_maps.keys import printable
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import BOOLEANS, COLUMNS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Row = tuple[object, ...]

_COLUMNS = (*COLUMNS, "file")
_BATCH = 1000
_LIST = ", ".join(_COLUMNS)
_SCHEMA = f"""
CREATE TABLE before ({_LIST});
CREATE INDEX before_name ON before (name, source);
"""
_MARKS = ", ".join("?" * len(_COLUMNS))
# The same failure at another time is no change.
_COMPARED = [name for name in _COLUMNS if name not in {"name", "source", "time"}]
_SAME = " AND ".join(f"before.{name} IS maps.{name}" for name in _COMPARED)
# The row of a map that was done stays, even if its file is gone now.
_CHANGED = f"""SELECT {_LIST} FROM maps WHERE NOT EXISTS (
    SELECT 1 FROM before WHERE before.name = maps.name AND before.source = maps.source
    AND (before.status = 'done' OR ({_SAME}))
)"""  # noqa: S608  # column names of our own
_GONE = f"""SELECT {_LIST} FROM before WHERE status = 'failed' AND NOT EXISTS (
    SELECT 1 FROM maps WHERE maps.name = before.name AND maps.source = before.source
)"""  # noqa: S608
_AFTER = f"""SELECT {_LIST} FROM before WHERE status = 'done'
UNION ALL SELECT {_LIST} FROM maps WHERE NOT EXISTS (
    SELECT 1 FROM before WHERE before.name = maps.name AND before.source = maps.source AND before.status = 'done'
)"""  # noqa: S608


class RetriedManifest(Manifest):
    """A new manifest with the rows of an earlier one. A run of the failed maps changes it."""

    def load(self, rows: Iterable[Row], root: str) -> None:
        """Take over all rows; the overlays of failed maps may be in the store.

        Args:
            rows: the values of the columns of a manifest, and the file.
            root: the place that the names are relative to.
        """
        found = iter(rows)
        with self._writing() as database:
            number = database.execute("INSERT INTO roots (place) VALUES (?)", (printable(root),)).lastrowid
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
            while batch := list(islice(found, _BATCH)):
                database.executemany(f"INSERT INTO before VALUES ({_MARKS})", batch)  # noqa: S608  # question marks
            database.execute(f"INSERT INTO maps ({_LIST}, root) SELECT {_LIST}, ? FROM before", (number,))  # noqa: S608
            database.execute(
                "INSERT OR IGNORE INTO sent (name, settings, is_new) "
                "SELECT name, settings, 0 FROM before WHERE status = 'failed'"
            )

    def changes(self, gone: str) -> Iterator[Row]:
        """Yield the rows that differ from the earlier ones, and those that are no more, with this status."""
        status = COLUMNS.index("status")
        yield from self._converted(f"{_CHANGED} ORDER BY name, source")
        for row in self._converted(f"{_GONE} ORDER BY name, source"):
            yield (*row[:status], gone, *row[status + 1 :])

    def rows_after(self) -> Iterator[Row]:
        """Yield all rows, after the changes."""
        return self._converted(_AFTER)

    def _converted(self, query: str) -> Iterator[Row]:
        with self._reading() as database:
            for row in database.execute(query):
                # SQLite has no booleans.
                yield tuple(
                    bool(value) if value is not None and column in BOOLEANS else value
                    for column, value in zip(_COLUMNS, row, strict=True)
                )
