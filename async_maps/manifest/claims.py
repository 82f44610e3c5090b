"""Detects maps with one locator, if the key template allows that, or one name, in streams and runs without a manifest.

Everything but :func:`distinct` blocks.
"""

from __future__ import annotations

from contextlib import aclosing
from threading import Lock
from typing import TYPE_CHECKING

from anyio import to_thread

from async_maps.errors import ManifestError
from async_maps.filesystems.spill import Spill
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable, Sequence

    from async_maps.outcomes import Failure

_SCHEMA = "CREATE TABLE claims (locator TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID"


_NAMES = "CREATE TABLE names (name TEXT PRIMARY KEY, source TEXT NOT NULL) WITHOUT ROWID"


def same_name(map_: ActivationMap, first: str) -> Failure:
    """Return the failure of a map that has the name of another map of the run, whose source is ``first``."""
    reason = (
        f"another map of this run has the same name: {first!r}; rename one of them, or leave one out with --exclude"
    )
    return map_.failure("source", reason)


class Names(Spill):
    """The names of a stream or a run without a manifest. A second map with the same name fails before it is uploaded.

    All methods raise ManifestError if the disk of temporary files is full.
    """

    def __init__(self) -> None:
        super().__init__("the names of a run", _NAMES, ManifestError)

    def check(self, entries: Sequence[ActivationMap | Failure]) -> list[ActivationMap | Failure]:
        """Take the name of each map; replace a map whose name is already taken by its failure."""
        with self.transaction():
            return [self._take(entry) if isinstance(entry, ActivationMap) else entry for entry in entries]

    def _take(self, map_: ActivationMap) -> ActivationMap | Failure:
        taken = self._database.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (map_.name, map_.source))
        if taken.rowcount:
            return map_
        (first,) = self._database.execute("SELECT source FROM names WHERE name = ?", (map_.name,)).fetchone()
        return same_name(map_, first)


async def distinct(
    listing: AsyncGenerator[list[ActivationMap | Failure], None],
) -> AsyncGenerator[list[ActivationMap | Failure], None]:
    """Refuse the second of two maps with one name, for a stream or a run without a manifest."""
    with Names() as names:
        async with aclosing(listing):
            async for batch in listing:
                yield await to_thread.run_sync(names.check, batch)


class Claims(Spill):
    """The locators of a run, and the map of each. A second map with the same locator fails before it is uploaded.

    All methods raise ManifestError if the disk of temporary files is full.
    """

    def __init__(self, locate: Callable[[ActivationMap], str]) -> None:
        super().__init__("the list of locators", _SCHEMA, ManifestError)
        self._locate = locate
        self._checking = Lock()
        self._closed = False

    def __exit__(self, *error: object) -> None:
        with self._checking:
            self._closed = True
            super().__exit__(*error)

    def load(self, claims: Iterable[tuple[str, str]]) -> None:
        """Add claims of earlier runs, each a locator and a name; existing claims are not changed."""
        with self.transaction() as database:
            database.executemany("INSERT OR IGNORE INTO claims VALUES (?, ?)", claims)

    def check(self, entries: Sequence[ActivationMap | Failure]) -> list[ActivationMap | Failure]:
        """Claim the locator of each map; replace a map whose locator is already claimed by its failure."""
        with self._checking:
            if self._closed:  # none of them will be uploaded
                return list(entries)
            with self.transaction():
                return [self._claim(entry) if isinstance(entry, ActivationMap) else entry for entry in entries]

    def _claim(self, map_: ActivationMap) -> ActivationMap | Failure:
        locator = self._locate(map_)
        self._database.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (locator, map_.name))
        (name,) = self._database.execute("SELECT name FROM claims WHERE locator = ?", (locator,)).fetchone()
        if name == map_.name:
            return map_
        reason = (
            f"{locator!r} is the overlay of another map, {name!r}: add {{name}} or {{digest}} to the key; if that map "
            "no longer exists, run again with --overwrite"
        )
        return map_.failure("source", reason)
