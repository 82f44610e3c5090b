"""Who has which locator, where two names may come to the same one. It blocks: call it in a thread."""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from async_maps.errors import ManifestError
from async_maps.filesystems.spill import Spill
from async_maps.outcomes import Failure
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

_SCHEMA = "CREATE TABLE claims (locator TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID"


class Claims(Spill):
    """The locators that were given out. A map whose locator another name has fails before anything is overwritten.

    Every method raises ManifestError if there is no room in the folder of temporary files.
    """

    def __init__(self, locate: Callable[[ActivationMap], str]) -> None:
        super().__init__("the record of who has which locator", _SCHEMA, ManifestError)
        self._locate = locate
        self._checking = Lock()
        self._closed = False

    def __exit__(self, *error: object) -> None:
        with self._checking:
            self._closed = True
            super().__exit__(*error)

    def load(self, claims: Iterable[tuple[str, str]]) -> None:
        """Take over claims, each a locator and its name; those that are there already stay as they are."""
        with self.transaction() as database:
            database.executemany("INSERT OR IGNORE INTO claims VALUES (?, ?)", claims)

    def check(self, entries: Sequence[ActivationMap | Failure]) -> list[ActivationMap | Failure]:
        """Let each map claim its locator; the second to do so fails. Once closed, none does: no map is uploaded."""
        with self._checking:
            if self._closed:
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
            f"{locator!r} is the overlay of {name!r}: let the key hold {{name}} or {{digest}} to tell them apart; "
            "if that one is gone, do all anew with --overwrite"
        )
        return Failure(map_.name, map_.source, map_.fingerprint, "source", reason)
