"""The rows whose map is no longer in the source: found by what a run has listed. Everything here blocks."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from async_maps.filesystems.locators import file_number
from async_maps.manifest.metadata import ManifestMetadata

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from async_maps.outcomes import Failure
    from async_maps.sources.coverage import Coverage, ReadFile

_TEMPORARY = """
CREATE TEMP TABLE seen (name TEXT PRIMARY KEY, source TEXT NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE refused (name TEXT, source TEXT, PRIMARY KEY (name, source)) WITHOUT ROWID;
CREATE TEMP TABLE read (file TEXT PRIMARY KEY, path TEXT NOT NULL) WITHOUT ROWID;
"""
"""What the listing of this run has: maps, refused maps, and files with failed rows that were read.

SQLite spills it to disk, and deletes it at the close.
"""
_ROWS = "SELECT maps.rowid AS number, name, ifnull(file, source) AS path, locator FROM maps"
_SCOPE = "root = ? AND covers(ifnull(file, source))"
# Maps that were refused at their source may share their name with other maps.
_FAILED = """status = 'failed' AND CASE WHEN stage = 'source'
    THEN NOT EXISTS (SELECT 1 FROM refused WHERE refused.name = maps.name AND refused.source = maps.source)
        AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.name = maps.name AND seen.source = maps.source)
    ELSE NOT EXISTS (SELECT 1 FROM seen WHERE seen.name = maps.name)
END"""
_STORED = "locator IS NOT NULL AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.name = maps.name)"
# Maps that failed after they were done; also those without a failed row, which an earlier run has forgotten.
_LOST = """INSERT INTO stale SELECT NULL, name, file, locator FROM sent WHERE locator IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM seen WHERE seen.name = sent.name)
    AND NOT EXISTS (SELECT 1 FROM refused WHERE refused.name = sent.name)
    AND root = ? AND covers(file)"""
_SHARED = """INSERT INTO shared SELECT DISTINCT locator FROM stale WHERE locator IN (
    SELECT locator FROM maps WHERE locator IS NOT NULL
    AND rowid NOT IN (SELECT number FROM stale WHERE number IS NOT NULL)
)"""
# Two locators are one file behind a link, or on a disk that ignores case.
_SAME_FILE = """INSERT OR IGNORE INTO shared SELECT DISTINCT locator FROM stale WHERE file_number(locator) IN (
    SELECT file_number(locator) FROM maps WHERE locator IS NOT NULL
    AND rowid NOT IN (SELECT number FROM stale WHERE number IS NOT NULL)
)"""
_NOTE_READ = """INSERT OR IGNORE INTO read SELECT :file, :path
WHERE EXISTS (SELECT 1 FROM maps WHERE status = 'failed' AND ifnull(file, source) = :file)"""
_SUPERSEDED = (
    "SELECT maps.rowid AS number, name, path, locator FROM read "  # noqa: S608  # our own text
    f"CROSS JOIN maps ON ifnull(maps.file, source) = read.file WHERE {_FAILED} AND root = ?"
)
_BATCH = 1000


class StaleRow(NamedTuple):
    """A row whose map is no longer in the source.

    Attributes:
        number: the rowid; None if the map failed after it was done, and this is what is left of that row.
        name: the name of the map.
        path: the path of its file; of a superseded row, below the source.
        locator: None without an overlay.
    """

    number: int | None
    name: str
    path: str
    locator: str | None


class StaleRows(ManifestMetadata):
    """The rows of a source, compared with what this run has listed of it."""

    _coverage: Coverage | None = None
    _root: int | None = None
    _has_failed: bool | None = None

    def follow(self, coverage: Coverage) -> None:
        """From now on, rows belong to the source whose listing fills this coverage."""
        self._coverage, self._root = coverage, None
        self._database.create_function("covers", 1, coverage.is_covered)

    def prepare_listing(self) -> None:
        """Create the temporary tables for what the run lists."""
        with self._reading() as database:
            database.executescript(_TEMPORARY)

    def note_listed(self, refused: Iterable[Failure], read: Sequence[ReadFile]) -> None:
        """Record maps that were refused at their source, and files whose maps were all listed."""
        if self._has_failed is None:
            with self._reading() as database:
                query = (
                    "SELECT 1 FROM maps WHERE status = 'failed' UNION ALL "
                    "SELECT 1 FROM sent WHERE locator IS NOT NULL LIMIT 1"
                )
                self._has_failed = bool(database.execute(query).fetchall())
        if not self._has_failed:
            return
        with self._reading() as database:
            rows = [(failure.name, failure.source) for failure in refused]
            database.executemany("INSERT OR IGNORE INTO refused VALUES (?, ?)", rows)
            database.executemany(_NOTE_READ, [file._asdict() for file in read])

    def stored(self) -> int:
        """Return the number of overlays of the source."""
        query = (
            f"SELECT (SELECT count(*) FROM maps WHERE locator IS NOT NULL AND {_SCOPE}) + "  # noqa: S608  # our own text
            "(SELECT count(*) FROM sent WHERE locator IS NOT NULL AND root = ? AND covers(file))"
        )
        with self._reading() as database:
            return int(database.execute(query, (self._root_id(), self._root_id())).fetchone()[0])

    def find_stale(self) -> int:
        """Find the overlays whose map a complete listing did not list; return their number."""
        count = self._find("stale", f"{_ROWS} WHERE {_STORED} AND {_SCOPE}")
        with self._reading() as database:
            if self._has_failed:
                count += database.execute(_LOST, (self._root_id(),)).rowcount
            database.execute("CREATE TEMP TABLE shared (locator TEXT PRIMARY KEY) WITHOUT ROWID")
            if count:
                database.create_function("file_number", 1, file_number)
                database.execute(_SHARED)
                database.execute(_SAME_FILE)
        return count

    def stale(self) -> Iterator[tuple[list[StaleRow], list[str]]]:
        """Yield the rows that were found, in batches, and the locators of each batch that no other row has."""
        for batch in self._found("stale"):
            query = "SELECT 1 FROM shared WHERE locator = ?"
            with self._reading() as database:
                own = {row.locator for row in batch if not database.execute(query, (row.locator,)).fetchone()}
            yield batch, sorted(filter(None, own))

    def stale_failed(self, *, with_overlays: bool = True) -> Iterator[list[StaleRow]]:
        """Yield the failed rows of earlier runs whose map a complete listing of the source did not list, in batches."""
        if self._has_failed:
            overlays = "" if with_overlays else "AND locator IS NULL"
            self._find("stale_failed", f"{_ROWS} INDEXED BY maps_failed WHERE {_FAILED} AND {_SCOPE} {overlays}")
            yield from self._found("stale_failed")

    def superseded(self) -> Iterator[list[StaleRow]]:
        """Yield the failed rows of the files that were read, whose map was not listed, in batches."""
        if self._has_failed:
            self._find("superseded", _SUPERSEDED)
            yield from self._found("superseded")

    def forget(self, rows: Sequence[StaleRow]) -> None:
        """Delete rows, in one transaction."""
        with self._writing() as database:
            database.executemany(
                "DELETE FROM maps WHERE rowid = ?", [(row.number,) for row in rows if row.number is not None]
            )
            lost = [(row.name, row.locator) for row in rows if row.number is None]
            database.executemany("DELETE FROM sent WHERE name = ? AND locator = ?", lost)

    def _find(self, table: str, query: str) -> int:
        """Keep the rows of a query, whose value is the root, in a temporary table; return their number."""
        with self._reading() as database:
            database.execute(f"CREATE TEMP TABLE {table} AS {query}", (self._root_id(),))
            return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  # our own text

    def _found(self, table: str) -> Iterator[list[StaleRow]]:
        query = f"SELECT * FROM {table} WHERE rowid BETWEEN ? AND ?"  # noqa: S608  # our own text
        for first in count(1, _BATCH):
            with self._reading() as database:
                batch = [StaleRow(*row) for row in database.execute(query, (first, first + _BATCH - 1))]
            if not batch:
                return
            yield batch

    @property
    def root(self) -> str:
        """The place that the names of this run are relative to; empty before the listing knows it, or without one."""
        return "" if self._coverage is None else self._coverage.root

    def _root_id(self) -> int | None:
        """Return the number of the root; None before its first row is written, or without one."""
        if self._root is None and self.root:
            found = self._database.execute("SELECT id FROM roots WHERE place = ?", (self.root,)).fetchone()
            self._root = found and found[0]
        return self._root

    def _new_root_id(self) -> int | None:
        """Return the number of the root, which gets one now, inside a transaction; it is not kept: that may fail."""
        known = self._root_id()
        if known is not None or not self.root:
            return known
        return self._database.execute("INSERT INTO roots (place) VALUES (?)", (self.root,)).lastrowid
