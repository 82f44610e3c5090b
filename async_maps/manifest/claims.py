"""Who has which locator, where two names may come to the same one. It blocks: call it in a thread."""

from __future__ import annotations

import sqlite3
from threading import Lock
from typing import TYPE_CHECKING

from async_maps.manifest.sqlite_errors import translate_sqlite_errors
from async_maps.outcomes import Failure
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

_WHAT = "the record of who has which locator, among the temporary files (TMPDIR says where),"


class Claims:
    """The locators that were given out. A map whose locator another name has fails before anything is overwritten.

    It keeps them in a private database, which SQLite spills to a file of its own and deletes: any number will do.

    Args:
        locate: the locator of a map.
    """

    def __init__(self, locate: Callable[[ActivationMap], str]) -> None:
        self._locate = locate
        self._turn = Lock()
        self._closed = False
        self._database = sqlite3.connect("", check_same_thread=False, isolation_level=None)
        self._database.execute("CREATE TABLE claims (locator TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID")

    def __enter__(self) -> Claims:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._turn:
            self._closed = True
            self._database.close()

    def load(self, claims: Iterable[tuple[str, str]]) -> None:
        """Take over claims, each a locator and its name; those that are there already stay as they are.

        Raises:
            ManifestError: there is no room for them in the folder of temporary files.
        """
        with self._turn, translate_sqlite_errors(_WHAT, "written"):
            self._database.execute("BEGIN")
            self._database.executemany("INSERT OR IGNORE INTO claims VALUES (?, ?)", claims)
            self._database.execute("COMMIT")

    def check(self, entries: Sequence[ActivationMap | Failure]) -> list[ActivationMap | Failure]:
        """Let each map claim its locator; who comes second is a failure. Once closed, none does: no map is uploaded.

        Raises:
            ManifestError: there is no room for them in the folder of temporary files.
        """
        with self._turn, translate_sqlite_errors(_WHAT, "written"):
            if self._closed:
                return list(entries)
            return [self._claim(entry) if isinstance(entry, ActivationMap) else entry for entry in entries]

    def _claim(self, map_: ActivationMap) -> ActivationMap | Failure:
        locator = self._locate(map_)
        self._database.execute("INSERT OR IGNORE INTO claims VALUES (?, ?)", (locator, map_.name))
        (name,) = self._database.execute("SELECT name FROM claims WHERE locator = ?", (locator,)).fetchone()
        if name == map_.name:
            return map_
        reason = (
            f"{locator} is the overlay of {name}: let the key hold {{name}} or {{digest}} to tell them apart; "
            "if that one is gone, do all anew with --overwrite"
        )
        return Failure(map_.name, map_.source, map_.fingerprint, "source", reason)
