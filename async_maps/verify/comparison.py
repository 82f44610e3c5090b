"""What should lie at locators beside what does, and how they differ. It blocks: call it in a thread."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from urllib.parse import unquote

from async_maps.errors import ManifestError
from async_maps.filesystems.locators import file_path
from async_maps.filesystems.spill import Spill

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from async_maps.filesystems.objects import ObjectInfo

Kind: TypeAlias = Literal[
    "missing", "size", "etag", "content-type", "undecodable", "digest", "broken", "foreign", "unreadable", "unknown"
]
"""How an object differs from what it should be.

``missing``: there is none. ``size``: it has other bytes, as many as are named. ``etag``: another object lies there.
``content-type``: its content type is not that of a PNG. ``undecodable``: it is no PNG, a damaged one, or one of another
width or height. ``digest``: its bytes are not those that were sent. ``broken``: it was found so before, and not made
again since. ``foreign``: a PNG that lies among the overlays and is none of them. ``unreadable``: the store does not
hand it out, or it has more pixels than may be decoded. ``unknown``: its locator is of a kind that is not read here.
"""

MENDABLE: tuple[Kind, ...] = ("missing", "size", "etag", "content-type", "undecodable", "digest")
"""What another upload mends. What cannot be read, during an outage say, is left as it is."""

_AT_ONCE = 1000
_SCHEMA = """
CREATE TABLE expected (
    locator TEXT, name TEXT, size INTEGER, etag TEXT, crc32 TEXT, width INTEGER, height INTEGER, is_overlay INTEGER,
    written_at TEXT, broken TEXT, PRIMARY KEY (locator, name)
) WITHOUT ROWID;
CREATE TABLE found (locator TEXT PRIMARY KEY, size INTEGER, etag TEXT) WITHOUT ROWID;
CREATE TABLE unlisted (folded TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE differences (kind TEXT, locator TEXT, name TEXT, expected TEXT, found TEXT);
CREATE INDEX differences_locator ON differences (locator);
"""
_DIFFERENT = """
SELECT expected.*, found.* FROM expected LEFT JOIN found USING (locator)
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
SELECT * FROM found WHERE locator > ? AND CASE
    -- One after the other: folding asks the disk.
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
_FORGET = """
DELETE FROM {0} WHERE locator = ? AND NOT EXISTS (
    SELECT 1 FROM expected WHERE locator = {0}.locator AND name = ? AND written_at = ?
)
"""
_LOCATORS = """
SELECT count(*) FROM (SELECT locator FROM expected UNION SELECT locator FROM differences WHERE kind = 'unknown')
"""


class Expected(NamedTuple):
    """What should lie at a locator; what is None is not known, and not compared."""

    locator: str
    name: str
    """The map's; of a table, which row."""
    size: int | None = None
    """Bytes."""
    etag: str | None = None
    """Without quotes."""
    crc32: str | None = None
    """8 hexadecimal digits."""
    width: int | None = None
    height: int | None = None
    is_overlay: bool = True
    """Whether it should be a PNG."""
    written_at: str = ""
    """When it was stored, UTC in ISO 8601; empty if that is not known."""
    broken: str | None = None
    """What an earlier look has found instead; None if it was right."""


class Difference(NamedTuple):
    """One object that is not as it should be.

    Attributes:
        kind: in what.
        locator: where it lies.
        name: of its map; of a table, which row; empty if nobody knows it.
        expected: what should be there.
        found: what is.
    """

    kind: Kind
    locator: str
    name: str
    expected: str
    found: str

    def __str__(self) -> str:
        if self.kind == "foreign":
            return f"foreign: {self.locator}: {self.found} that no row knows"
        return f"{self.kind}: {self.locator}: expected {self.expected}, found {self.found}"


class Comparison(Spill):
    """Two lists, of what is expected and of what was found, in any order and of any length.

    Every method raises ManifestError if there is no room in the folder of temporary files.
    """

    def __init__(self) -> None:
        super().__init__("the comparison", _SCHEMA, ManifestError)
        self._database.create_function("folded", 1, _folded)

    def expect(self, objects: Iterable[Expected]) -> int:
        """Add what should be there; how many rows are new."""
        return self._insert("INSERT OR IGNORE INTO expected VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", objects)

    def find(self, objects: Iterable[ObjectInfo]) -> int:
        """Add what is there; how many are new."""
        return self._insert("INSERT OR IGNORE INTO found VALUES (?, ?, ?)", objects)

    def unlist(self, locators: Iterable[str]) -> None:
        """Let what a listing calls a little differently than these not be foreign: it may be the same object.

        So it is where links lead to it, or where a disk or a server knows no case or has its own form of an accent or a
        slash.
        """
        self._insert("INSERT OR IGNORE INTO unlisted VALUES (folded(?))", ((locator,) for locator in locators))

    def note(self, differences: Iterable[Difference]) -> None:
        """Add differences that a listing does not show."""
        self._insert("INSERT INTO differences VALUES (?, ?, ?, ?, ?)", differences)

    def note_read(self, differences: Iterable[Difference]) -> None:
        """Add how objects differ that were read, to every row that expects them."""
        self._insert(
            "INSERT INTO differences SELECT ?, locator, name, ?, ? FROM expected WHERE locator = ?",
            ((kind, expected, found, locator) for kind, locator, _, expected, found in differences),
        )

    def compare(self) -> None:
        """Note how what was found differs from what was expected, as far as a listing shows."""
        with self.transaction() as database:
            rows = database.execute(_DIFFERENT)
            database.executemany("INSERT INTO differences VALUES (?, ?, ?, ?, ?)", map(_difference, rows))

    def forget_changed(self, rows: Iterable[tuple[object, object, object]]) -> None:
        """Do not judge what was written since: each a locator, a name and when that was."""
        with self.transaction() as database:
            for row in rows:
                for table in ("differences", "found"):
                    database.execute(_FORGET.format(table), row)

    def folders(self) -> list[tuple[str, int]]:
        """The longest folder that all expected objects of a bucket share, with its slash, and how many they are."""
        folders = []
        after = ""
        while (first := self._one("SELECT min(locator) FROM expected WHERE locator >= ?", after)) is not None:
            bucket = _bucket(first)
            # What follows a slash in the order of bytes.
            after = f"{bucket[:-1]}0"
            last = self._one("SELECT max(locator) FROM expected WHERE locator < ?", after)
            count = self._one("SELECT count(*) FROM expected WHERE locator >= ? AND locator < ?", first, after)
            folders.append((_common_folder(first, last), count))
        return folders

    def unseen(self, after: str) -> list[str]:
        """Expected locators that were not found, behind one, in their order: up to a thousand."""
        return [locator for (locator,) in self.rows(_UNSEEN, after, _AT_ONCE)]

    def foreign(self, after: str) -> list[tuple[str, int]]:
        """What was found and not expected, with its size, behind a locator, in their order: up to a thousand."""
        return [(locator, size) for locator, size, _ in self.rows(_FOREIGN, after, _AT_ONCE)]

    def to_read(self, after: str, since: str) -> list[Expected]:
        """What differs in nothing so far and was stored then or later, each locator once: up to a thousand.

        The sizes are those that were found.
        """
        return [Expected(*row) for row in self.rows(_TO_READ, after, since, _AT_ONCE)]

    def differences(self, *kinds: Kind) -> Iterator[Difference]:
        """Those of these kinds, or all; an object may differ in more than one thing."""
        number = 0
        marks = f"kind IN ({', '.join('?' * len(kinds))})" if kinds else "1"
        query = f"SELECT rowid, * FROM differences WHERE rowid > ? AND {marks} ORDER BY rowid LIMIT {_AT_ONCE}"  # noqa: S608  # question marks
        while rows := self.rows(query, number, *kinds):
            for number, *values in rows:  # noqa: B007  # the last one is where to go on
                yield Difference(*values)

    def counts(self) -> dict[Kind, int]:
        """How many objects differ in each thing."""
        return dict(self.rows("SELECT kind, count(DISTINCT locator) FROM differences GROUP BY kind"))

    def locators(self) -> int:
        """How many different objects are expected, with those that are of an unknown kind."""
        return int(self._one(_LOCATORS))

    def right(self) -> int:
        """How many expected objects differ in nothing."""
        query = (
            "SELECT count(DISTINCT locator) FROM expected "
            "WHERE NOT EXISTS (SELECT 1 FROM differences WHERE differences.locator = expected.locator)"
        )
        return int(self._one(query))

    def _insert(self, statement: str, rows: Iterable[tuple[object, ...]]) -> int:
        with self.transaction() as database:
            return database.executemany(statement, rows).rowcount

    def _one(self, query: str, *values: object) -> Any:
        ((value,),) = self.rows(query, *values)
        return value


def _difference(row: tuple[Any, ...]) -> Difference:
    """What a row of both lists differs in: the first thing that shows."""
    expected, (locator, size, etag) = Expected(*row[:-3]), row[-3:]
    what = "an overlay" if expected.size is None else f"{expected.size:,} bytes"
    about = expected.locator, expected.name
    if expected.broken is not None:
        return Difference("broken", *about, what, f"it broken before ({expected.broken}), and was not repaired since")
    if locator is None:
        return Difference("missing", *about, what, "nothing")
    if expected.size not in {None, size}:
        return Difference("size", *about, what, f"{size:,} bytes")
    return Difference("etag", *about, f"ETag {expected.etag}", etag)


def _folded(locator: str) -> str:
    path = file_path(locator)
    if path is not None and "\0" not in path:
        # Through links: what is listed in one folder may be what is expected in another.
        locator = Path(os.path.realpath(path)).as_uri()
    return unicodedata.normalize("NFC", unquote(locator).casefold()).replace("\\", "/")


def _bucket(locator: str) -> str:
    """``s3://bucket/`` of a locator; ``file:///`` of a file's."""
    return locator[: locator.index("/", locator.index("://") + 3) + 1]


def _common_folder(first: str, last: str) -> str:
    same = next((i for i, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return first[: first.rindex("/", 0, same) + 1]
