"""Detects maps with one locator, if the key template allows that, or one name, in streams and runs without a manifest.

Everything but the coroutines blocks.
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

    from async_maps.filesystems.spelling import Spelling
    from async_maps.keys import KeyTemplate
    from async_maps.outcomes import Failure
    from async_maps.stores import AddressedStore

_SCHEMA = "CREATE TABLE claims (folded TEXT PRIMARY KEY, locator TEXT NOT NULL, name TEXT NOT NULL) WITHOUT ROWID"


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

    So does a map whose overlay would be the file of another map, on a disk that takes both locators as one file.
    All methods raise ManifestError if the disk of temporary files is full.

    Args:
        locate: returns the locator of a map.
        spelling: how the disk compares names; None if it distinguishes all.
    """

    def __init__(self, locate: Callable[[ActivationMap], str], spelling: Spelling | None = None) -> None:
        super().__init__("the list of locators", _SCHEMA, ManifestError)
        self._locate = locate
        self._spelling = spelling
        self._checking = Lock()
        self._closed = False

    def __exit__(self, *error: object) -> None:
        with self._checking:
            self._closed = True
            super().__exit__(*error)

    def load(self, claims: Iterable[tuple[str, str]]) -> None:
        """Add claims of earlier runs, each a locator and a name; existing claims are not changed."""
        with self.transaction() as database:
            database.executemany(
                "INSERT OR IGNORE INTO claims VALUES (?, ?, ?)",
                ((self._folded(locator), locator, name) for locator, name in claims),
            )

    def check(self, entries: Sequence[ActivationMap | Failure]) -> list[ActivationMap | Failure]:
        """Claim the locator of each map; replace a map whose locator is already claimed by its failure."""
        with self._checking:
            if self._closed:  # none of them will be uploaded
                return list(entries)
            with self.transaction():
                return [self._claim(entry) if isinstance(entry, ActivationMap) else entry for entry in entries]

    def _folded(self, locator: str) -> str:
        return locator if self._spelling is None else self._spelling.fold(locator)

    def _claim(self, map_: ActivationMap) -> ActivationMap | Failure:
        locator = self._locate(map_)
        taken, name = self._claimed(self._folded(locator), locator, map_.name)
        if taken != locator and self._spelling is not None and not self._spelling.are_one(taken, locator):
            taken, name = self._claimed(locator, locator, map_.name)
        if name == map_.name:
            return map_
        if taken != locator:
            reason = (
                f"its overlay would be the file of another map, {name!r}: {_one_file(self._spelling)}: rename one; if "
                "that map no longer exists, run again with --overwrite"
            )
            return map_.failure("source", reason)
        reason = (
            f"{locator!r} is the overlay of another map, {name!r}: add {{name}} or {{digest}} to the key; if that map "
            "no longer exists, run again with --overwrite"
        )
        return map_.failure("source", reason)

    def _claimed(self, folded: str, locator: str, name: str) -> tuple[str, str]:
        """Claim a locator, and return the locator and the name of the first that claimed it."""
        self._database.execute("INSERT OR IGNORE INTO claims VALUES (?, ?, ?)", (folded, locator, name))
        found = self._database.execute("SELECT locator, name FROM claims WHERE folded = ?", (folded,)).fetchone()
        return found[0], found[1]


async def claims_of(store: AddressedStore, template: KeyTemplate) -> Claims | None:
    """Return the claims of a run into a store; None if no two names can have the same overlay there."""
    look = getattr(store, "spelling", None)
    # Overlays with equal digests are equal.
    spelling = None if look is None or template.needs_digest else await to_thread.run_sync(look)
    if spelling is None and not template.may_collide:
        return None
    return Claims(lambda map_: store.locator(template.key(store.prefix, map_.name, map_.index)), spelling)


def _one_file(spelling: Spelling | None) -> str:
    ignores_case = spelling is not None and spelling.ignores_case
    return f"this disk ignores {'case' if ignores_case else 'the Unicode form of names'}"
