"""The comparison of expected and existing objects, in SQLite. Everything here blocks."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

from async_maps.errors import ManifestError
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.filesystems.locators import file_path
from async_maps.filesystems.spill import Spill

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from async_maps.filesystems.objects import ObjectInfo

Kind: TypeAlias = Literal[
    "missing", "size", "etag", "content-type", "undecodable", "digest", "broken", "foreign", "unreadable", "unknown"
]
"""How an object differs from the expected one.

``missing``: it does not exist. ``size``: its size differs. ``etag``: its ETag differs. ``content-type``: its content
type is not that of a PNG. ``undecodable``: it is not a PNG, or a damaged one, or its width or height differs.
``digest``: its bytes differ from those that were uploaded. ``broken``: an earlier verification found it broken, and it
was not repaired since. ``foreign``: a PNG under the destination that is not in the manifest. ``unreadable``: the store
does not return it, or it has more pixels than ``max_pixels``. ``unknown``: the kind of its locator is not supported.
"""

REPAIRABLE: tuple[Kind, ...] = ("missing", "size", "etag", "content-type", "undecodable", "digest")
"""The differences that another upload repairs. Unreadable objects are not repaired: there may be an outage."""

_BATCH_ROWS = 1000
_SCHEMA = """
CREATE TABLE expected (
    locator TEXT, name TEXT, size INTEGER, etag TEXT, crc32 TEXT, width INTEGER, height INTEGER, is_overlay INTEGER,
    written_at TEXT, broken TEXT, PRIMARY KEY (locator, name)
) WITHOUT ROWID;
CREATE TABLE found (locator TEXT PRIMARY KEY, size INTEGER, etag TEXT, modified REAL) WITHOUT ROWID;
CREATE TABLE unlisted (folded TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE current (locator TEXT, name TEXT, written_at TEXT, PRIMARY KEY (locator, name)) WITHOUT ROWID;
CREATE TABLE changed (locator TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE unsettled (locator TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE sent (pattern TEXT PRIMARY KEY, is_glob INTEGER, is_failed INTEGER) WITHOUT ROWID;
CREATE TABLE differences (kind TEXT, locator TEXT, name TEXT, expected TEXT, found TEXT);
CREATE INDEX differences_locator ON differences (locator);
"""
_DIFFERENT = """
SELECT expected.*, found.locator, found.size, found.etag FROM expected LEFT JOIN found USING (locator)
WHERE (
    expected.broken IS NOT NULL OR found.locator IS NULL OR expected.size <> found.size OR expected.etag <> found.etag
) AND NOT EXISTS (SELECT 1 FROM differences WHERE differences.locator = expected.locator AND kind = 'unreadable')
ORDER BY expected.locator
"""
_UNSEEN = """
SELECT DISTINCT locator FROM expected WHERE locator > ? AND NOT EXISTS (
    SELECT 1 FROM found WHERE found.locator = expected.locator
) ORDER BY locator LIMIT ?
"""
_FOREIGN = """
SELECT locator, size, modified FROM found WHERE locator > ? AND CASE
    -- CASE evaluates in this order, because folded() may read the disk.
    WHEN EXISTS (SELECT 1 FROM expected WHERE expected.locator = found.locator) THEN 0
    ELSE folded(locator) NOT IN (SELECT folded FROM unlisted)
END ORDER BY locator LIMIT ?
"""
_TO_READ = """
SELECT locator, min(name), found.size, expected.etag, crc32, width, height, is_overlay, written_at, broken
FROM expected JOIN found USING (locator)
WHERE locator > ? AND is_overlay AND written_at >= ? AND NOT EXISTS (
    SELECT 1 FROM differences WHERE differences.locator = expected.locator
) GROUP BY locator ORDER BY locator LIMIT ?
"""
_CHANGED = """
INSERT INTO changed
SELECT locator FROM current WHERE NOT EXISTS (
    SELECT 1 FROM expected
    WHERE locator = current.locator AND name = current.name AND written_at = current.written_at
) UNION SELECT locator FROM expected WHERE NOT EXISTS (
    SELECT 1 FROM current
    WHERE locator = expected.locator AND name = expected.name AND written_at = expected.written_at
)
"""
_FORGET = (
    _CHANGED,
    # These are not among the expected ones.
    "DELETE FROM changed WHERE locator IN (SELECT locator FROM differences WHERE kind = 'unknown')",
    "INSERT OR IGNORE INTO unsettled SELECT locator FROM differences JOIN changed USING (locator)",
    "DELETE FROM differences WHERE locator IN (SELECT locator FROM changed)",
    "DELETE FROM found WHERE locator IN (SELECT locator FROM changed)",
)
_RIGHT = """
SELECT count(DISTINCT locator) FROM expected
WHERE NOT EXISTS (SELECT 1 FROM differences WHERE differences.locator = expected.locator)
AND NOT EXISTS (SELECT 1 FROM unsettled WHERE unsettled.locator = expected.locator)
"""
_SENT = """
SELECT is_failed FROM sent WHERE pattern = ? UNION ALL SELECT is_failed FROM sent WHERE is_glob AND ? GLOB pattern
LIMIT 1
"""
_REPLACED = """
SELECT count(DISTINCT locator) FROM differences JOIN found USING (locator) JOIN expected USING (locator)
WHERE kind IN ('size', 'etag', 'digest') AND modified > strftime('%s', written_at) + ?
"""
_LOCATORS = """
SELECT count(*) FROM (SELECT locator FROM expected UNION SELECT locator FROM differences WHERE kind = 'unknown')
"""


class Expected(NamedTuple):
    """The expected object at a locator. Attributes that are None are unknown, and not compared."""

    locator: str
    name: str
    """The name of the map; in a table, the row."""
    size: int | None = None
    """In bytes."""
    etag: str | None = None
    """Without quotes."""
    crc32: str | None = None
    """8 hexadecimal digits."""
    width: int | None = None
    height: int | None = None
    is_overlay: bool = True
    """Whether the object must be a PNG."""
    written_at: str = ""
    """The time of the upload, UTC in ISO 8601; empty if unknown."""
    broken: str | None = None
    """The difference that an earlier verification found; None if there was none."""


class Difference(NamedTuple):
    """One difference of one object.

    Attributes:
        kind: the kind of difference, see :data:`~async_maps.verify.comparison.Kind`.
        locator: the URL of the object.
        name: the name of the map; in a table, the row; empty for a foreign object.
        expected: the expected state, as text.
        found: the found state, as text.
    """

    kind: Kind
    locator: str
    name: str
    expected: str
    found: str

    def __str__(self) -> str:
        if self.kind == "foreign":
            return f"foreign: {self.locator}: {self.found}, not in the manifest"
        return f"{self.kind}: {self.locator}: expected {self.expected}, found {self.found}"


class Comparison(Spill):
    """Compares two lists, of expected and of existing objects, in any order and of any length.

    All methods raise ManifestError if the disk of temporary files is full.
    """

    def __init__(self) -> None:
        super().__init__("the comparison", _SCHEMA, ManifestError)
        self._database.create_function("folded", 1, _folded)

    def expect(self, objects: Iterable[Expected]) -> int:
        """Add expected objects; return the number of new rows."""
        return self._insert("INSERT OR IGNORE INTO expected VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", objects)

    def find(self, objects: Iterable[ObjectInfo]) -> int:
        """Add existing objects; return the number of new rows."""
        return self._insert("INSERT OR IGNORE INTO found VALUES (?, ?, ?, ?)", objects)

    def unlist(self, locators: Iterable[str]) -> None:
        """Do not report objects as foreign that differ from these only in case, Unicode form, slashes or a symlink.

        They may be the same objects, under the name that a file system or a server uses.
        """
        self._insert("INSERT OR IGNORE INTO unlisted VALUES (folded(?))", ((locator,) for locator in locators))

    def note(self, differences: Iterable[Difference]) -> None:
        """Add differences that the listings do not show."""
        self._insert("INSERT INTO differences VALUES (?, ?, ?, ?, ?)", differences)

    def note_read(self, differences: Sequence[Difference], modified: Mapping[str, float | None]) -> None:
        """Add differences of objects that were read, for each row with that locator.

        ``modified`` has the times of their last changes by locator, which may be later than in the listing.
        """
        self._insert(
            "UPDATE found SET modified = max(ifnull(modified, 0), ?) WHERE locator = ?",
            ((time, locator) for locator, time in modified.items() if time is not None),
        )
        self._insert(
            "INSERT INTO differences SELECT ?, locator, name, ?, ? FROM expected WHERE locator = ?",
            ((kind, expected, found, locator) for kind, locator, _, expected, found in differences),
        )

    def compare(self) -> None:
        """Add the differences between the expected and the existing objects."""
        with self.transaction() as database:
            rows = database.execute(_DIFFERENT)
            database.executemany("INSERT INTO differences VALUES (?, ?, ?, ?, ?)", map(_difference, rows))

    def forget_changed(self, rows: Iterable[tuple[object, object, object]]) -> None:
        """Forget the objects whose rows were written or deleted since.

        Each of the current rows is a locator, a name and the time of the upload.
        """
        with self.transaction() as database:
            database.executemany("INSERT OR IGNORE INTO current VALUES (?, ?, ?)", rows)
            for statement in _FORGET:
                database.execute(statement)

    def forget_found(self, locators: Iterable[str]) -> None:
        """Forget objects that are not expected: they are not foreign."""
        self._insert(
            "DELETE FROM found WHERE locator = ? AND locator NOT IN (SELECT locator FROM expected)",
            ((locator,) for locator in locators),
        )

    def expect_sent(self, patterns: Iterable[tuple[str, bool, bool]]) -> None:
        """Add the patterns of :func:`~async_maps.verify.sent.sent_patterns`."""
        self._insert("INSERT OR IGNORE INTO sent VALUES (?, ?, ?)", patterns)

    def sent(self, locators: Iterable[str]) -> dict[str, bool]:
        """Return which of the objects may be overlays without a row, each with whether its map has a failed row."""
        found = ((locator, self.rows(_SENT, locator, locator)) for locator in locators)
        return {locator: bool(rows[0][0]) for locator, rows in found if rows}

    def leave(self, locators: Iterable[str]) -> None:
        """Leave objects unjudged."""
        self._insert("INSERT OR IGNORE INTO unsettled VALUES (?)", ((locator,) for locator in locators))

    def leave_changed(self, after: float, until: float) -> None:
        """Leave the objects unjudged that differ and were changed between these times of the store's clock."""
        with self.transaction() as database:
            database.execute(
                "INSERT OR IGNORE INTO unsettled SELECT locator FROM differences JOIN found USING (locator) "
                "WHERE modified > ? AND modified <= ?",
                (after, until),
            )
            database.execute("DELETE FROM differences WHERE locator IN (SELECT locator FROM unsettled)")

    def leave_foreign(self) -> None:
        """Leave the foreign objects unjudged."""
        with self.transaction() as database:
            database.execute("INSERT OR IGNORE INTO unsettled SELECT locator FROM differences WHERE kind = 'foreign'")
            database.execute("DELETE FROM differences WHERE kind = 'foreign'")

    def foreign_since(self, time: float) -> int:
        """Return the number of foreign objects that were changed at or after this time of the store's clock."""
        query = "SELECT count(*) FROM differences JOIN found USING (locator) WHERE kind = 'foreign' AND modified >= ?"
        return int(self._one(query, time))

    def replaced(self, after_s: float) -> int:
        """Return the number of objects that differ and were changed this time or more after their rows."""
        return int(self._one(_REPLACED, after_s))

    def unsettled(self) -> int:
        """Return the number of objects that are not judged."""
        return int(self._one("SELECT count(*) FROM unsettled"))

    def folders(self) -> list[tuple[str, int]]:
        """Return, for each bucket, the longest common folder of the expected objects, and their number."""
        folders = []
        after = ""
        while (first := self._one("SELECT min(locator) FROM expected WHERE locator >= ?", after)) is not None:
            bucket = _bucket(first)
            # "0" follows "/" in the order of bytes.
            after = f"{bucket[:-1]}0"
            last = self._one("SELECT max(locator) FROM expected WHERE locator < ?", after)
            count = self._one("SELECT count(*) FROM expected WHERE locator >= ? AND locator < ?", first, after)
            folders.append((_common_folder(first, last), count))
        return folders

    def unseen(self, after: str) -> list[str]:
        """Return up to 1,000 expected locators behind ``after`` that were not found, sorted."""
        return [locator for (locator,) in self.rows(_UNSEEN, after, _BATCH_ROWS)]

    def foreign(self, after: str) -> list[tuple[str, int, float | None]]:
        """Return up to 1,000 existing objects behind ``after`` that were not expected, sorted.

        Each has its locator, its size, and the time of its last change.
        """
        return self.rows(_FOREIGN, after, _BATCH_ROWS)

    def to_read(self, after: str, since: str) -> list[Expected]:
        """Return up to 1,000 objects behind ``after`` that do not differ so far and were stored at or after ``since``.

        Each locator comes once. The sizes are those that were found.
        """
        return [Expected(*row) for row in self.rows(_TO_READ, after, since, _BATCH_ROWS)]

    def differences(self, *kinds: Kind) -> Iterator[Difference]:
        """Yield the differences of these kinds, or all; an object can have several."""
        number = 0
        marks = f"kind IN ({', '.join('?' * len(kinds))})" if kinds else "1"
        query = f"SELECT rowid, * FROM differences WHERE rowid > ? AND {marks} ORDER BY rowid LIMIT {_BATCH_ROWS}"  # noqa: S608  # question marks
        while rows := self.rows(query, number, *kinds):
            for number, *values in rows:  # noqa: B007  # the next query continues after the last number
                yield Difference(*values)

    def counts(self) -> dict[Kind, int]:
        """Return the number of objects with each kind of difference."""
        return dict(self.rows("SELECT kind, count(DISTINCT locator) FROM differences GROUP BY kind"))

    def locators(self) -> int:
        """Return the number of distinct expected locators, including unknown ones."""
        return int(self._one(_LOCATORS))

    def right(self) -> int:
        """Return the number of expected objects without a difference."""
        return int(self._one(_RIGHT))

    def _insert(self, statement: str, rows: Iterable[tuple[object, ...]]) -> int:
        with self.transaction() as database:
            return database.executemany(statement, rows).rowcount

    def _one(self, query: str, *values: object) -> Any:
        ((value,),) = self.rows(query, *values)
        return value


def _difference(row: tuple[Any, ...]) -> Difference:
    """Return the first difference in a row of the join."""
    expected, (locator, size, etag) = Expected(*row[:-3]), row[-3:]
    what = "an overlay" if expected.size is None else f"{expected.size:,} bytes"
    about = expected.locator, expected.name
    if expected.broken is not None:
        return Difference("broken", *about, what, f"it was broken before ({expected.broken}), and not repaired since")
    if locator is None:
        return Difference("missing", *about, what, "nothing")
    if expected.size not in {None, size}:
        return Difference("size", *about, what, f"{size:,} bytes")
    return Difference("etag", *about, f"ETag {expected.etag}", etag)


def _folded(locator: str) -> str:
    path = file_path(locator)
    if path is not None and "\0" not in path:
        # Resolve links: a listed file and an expected one in another folder may be the same.
        locator = Path(os.path.realpath(path)).as_uri()
    return unicodedata.normalize("NFC", unquote(locator).casefold()).replace("\\", "/")


def _bucket(locator: str) -> str:
    if is_remote(locator):
        return str(parse_address(locator)._replace(key=""))
    return locator[: locator.index("/", locator.index("://") + 3) + 1]


def _common_folder(first: str, last: str) -> str:
    same = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[: first.rindex("/", 0, same) + 1]
