"""The manifest: one SQLite row for every map of a job, written after its receipt. It blocks: call it in a thread.

What a run left is what the next one reads: a map that is done and unchanged is not done again. One run writes at a
time, and a second one is refused (:mod:`async_maps.manifest.lock`).
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from async_maps.errors import ManifestError
from async_maps.keys import printable
from async_maps.manifest.lock import RunLock
from async_maps.manifest.schema import APPLICATION_ID, BOOLEANS, COLUMNS, SCHEMA, UPSERT, VERSION
from async_maps.manifest.sqlite_errors import Doing, translate_sqlite_errors
from async_maps.outcomes import Failure, MapStatistics, Outcome, Receipt
from async_maps.render.ranges import UNIT, ValueRange
from async_maps.render.sketch import QuantileSketch
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from os import PathLike
    from types import TracebackType

Select: TypeAlias = Literal["changed", "failed", "all"]
"""The maps that a run does: those not done or changed since, those that failed before, or all."""

RepairMode: TypeAlias = Literal["broken", "moved"]
"""The maps that a repair does: those whose overlay was found broken and that were made with these settings, from this
source (``broken``) or from any (``moved``). It leaves all other rows as they are."""

_NONE_COUNTED = (None,) * len(MapStatistics._fields)


@dataclass(slots=True)
class Plan:
    """What is to be done of a batch of maps.

    Attributes:
        todo: maps to do.
        skipped: how many are left out: done already, or not asked for.
        refused: maps whose name another map of this run has already.
    """

    todo: list[ActivationMap] = field(default_factory=list)
    skipped: int = 0
    refused: list[Failure] = field(default_factory=list)


class KeptRun(NamedTuple):
    """What it takes to make overlays of a manifest once more.

    Attributes:
        source: where their maps came from; None if that was no place.
        settings: the fingerprint of the settings that shaped them, as in the rows.
        shaping: those settings, for :meth:`~async_maps.settings.Settings.shaped_as`.
    """

    source: str | None
    settings: str
    shaping: dict[str, Any]


class Manifest:
    """A manifest, opened for a run or to read.

    Args:
        path: the file, made if it does not exist; ":memory:" for none.
        read_only: the file must exist, and stays as it is.

    Raises:
        ManifestError: it cannot be opened or made, is no manifest of ours, or another run is writing it.
    """

    def __init__(self, path: str | PathLike[str], *, read_only: bool = False) -> None:
        self.path = Path(path)
        self._read_only = read_only
        self._locators_move = False
        self._lock: RunLock | None = None
        self._file: os.stat_result | None = None
        if path == ":memory:":
            place = ":memory:"
        else:
            self._refuse_place()
            place = f"{self.path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
        with self._explained("opened"):
            if place != ":memory:" and not read_only:
                self._lock = RunLock(self.path)
            try:
                # Threads take turns: each call is awaited before the next.
                self._database = sqlite3.connect(place, uri=True, check_same_thread=False, isolation_level=None)
                try:
                    self._prepare()
                    self._file = None if place == ":memory:" else self.path.stat()
                except BaseException:
                    self._database.close()
                    raise
            except BaseException:
                self._unlock()
                raise

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, and leave it as one: without the files beside it that a write-ahead log has."""
        try:
            if not self._read_only:
                # Somebody reads it, or its disk is full: then they stay until it is closed again.
                with suppress(sqlite3.Error):
                    self._database.execute("PRAGMA journal_mode = DELETE")
            self._database.close()
        finally:
            self._unlock()

    def begin(self, destination: str) -> None:
        """Begin a run into a destination.

        Raises:
            ManifestError: the manifest holds another destination's maps, or cannot be written.
        """
        self.prepare(destination)
        with self._writing():
            self._database.execute("INSERT OR REPLACE INTO meta VALUES ('destination', ?)", (destination,))
        self._begun_at = _now()

    def complete(self) -> None:
        """The run has seen its whole source: forget what was refused in earlier runs and not in this one.

        Raises:
            ManifestError: it cannot be written.
        """
        with self._writing():
            self._database.execute("DELETE FROM maps WHERE stage = 'source' AND time < ?", (self._begun_at,))

    def prepare(self, destination: str) -> None:
        """Prepare to plan a run into a destination, without writing anything.

        Raises:
            ManifestError: the manifest holds another destination's maps.
        """
        with self._explained("read"):
            known = self.destination()
            if known and known != destination and self._database.execute("SELECT 1 FROM maps LIMIT 1").fetchone():
                raise ManifestError(
                    f"{self.path} is the manifest of {known}, this run goes to {destination}: "
                    "name another file with --manifest"
                )
            # The names of this run, to tell two maps of one name: on disk where it must be, gone with the connection.
            self._database.execute("CREATE TEMP TABLE seen (name TEXT PRIMARY KEY, source TEXT NOT NULL) WITHOUT ROWID")

    def plan(self, maps: Sequence[ActivationMap], settings: str, mode: Select | RepairMode) -> Plan:
        """Say which of a batch of maps are to be done.

        Args:
            maps: a few hundred at a time.
            settings: the fingerprint of the settings that shape the bytes.
            mode: the maps that are asked for.

        Raises:
            ManifestError: the manifest cannot be read.
        """
        plan = Plan()
        with self._explained("read"), self._transaction("DEFERRED"):
            known = self._rows([map_.name for map_ in maps])
            refused = self._refused(maps) if mode == "failed" else set()
            taken = self._take_names(maps)
            for map_, is_first in zip(maps, taken, strict=True):
                if not is_first:
                    plan.refused.append(self._duplicate(map_))
                    continue
                row = known.get(map_.name, ())
                unchanged = map_.fingerprint is not None and row[:4] == (
                    "done", map_.source, map_.fingerprint, settings
                )  # fmt: skip
                broken = row[3:] == (settings, "verify")
                failed = row[:1] == ("failed",) or bool(refused and refused.intersection(_places(map_)))
                wanted = {
                    "changed": not unchanged,
                    "failed": failed,
                    "all": True,
                    "broken": broken and row[1] == map_.source,
                    "moved": broken,
                }
                if wanted[mode]:
                    plan.todo.append(map_)
                else:
                    plan.skipped += 1
        return plan

    def known(self, maps: Sequence[ActivationMap]) -> set[str]:
        """The names of those maps that an earlier run has met under the same name, in the same file and state.

        Raises:
            ManifestError: the manifest cannot be read.
        """
        with self._explained("read"):
            rows = self._rows([map_.name for map_ in maps])
        return {
            map_.name
            for map_ in maps
            if map_.fingerprint is not None and rows.get(map_.name, ())[1:3] == (map_.source, map_.fingerprint)
        }

    def write(self, outcomes: Sequence[Outcome], settings: str) -> None:
        """Write the rows of a batch, all or none.

        Raises:
            ManifestError: it cannot be written.
        """
        with self._writing():
            # What was refused at its source has no name that a newer row could replace, but it has its source.
            self._database.executemany(
                "DELETE FROM maps WHERE stage = 'source' AND source = ?", [(outcome.source,) for outcome in outcomes]
            )
            if self._locators_move:
                self._database.executemany(
                    "DELETE FROM maps WHERE locator = ? AND name <> ?",
                    [(outcome.locator, outcome.name) for outcome in outcomes if isinstance(outcome, Receipt)],
                )
            self._database.executemany(UPSERT, [_row(outcome, settings) for outcome in outcomes])

    def keep_range(self, value_range: ValueRange, setting: str) -> None:
        """Write down which range the run's colors span, for other runs.

        Args:
            value_range: the run's, a known one.
            setting: how it was asked for.

        Raises:
            ManifestError: it cannot be written.
        """
        span = None if value_range.is_relative else [value_range.low, value_range.high]
        self._keep("range", [setting, value_range.kind, span])

    def keep_run(self, run: KeptRun) -> None:
        """Write down what it takes to do maps of a run once more; of two that are alike, the later one stays.

        Raises:
            ManifestError: it cannot be written.
        """
        digest = hashlib.sha256(os.fsencode(run.source or "")).hexdigest()[:32]
        self._keep(f"run {run.settings} {digest}", [run.source, run.settings, run.shaping])

    def runs(self) -> list[KeptRun]:
        """The different runs that were kept; of an older manifest none is."""
        with self._explained("read"):
            rows = self._database.execute("SELECT value FROM meta WHERE key LIKE 'run %' ORDER BY key")
            return [KeptRun(*json.loads(value)) for (value,) in rows]

    def destination(self) -> str | None:
        """The identity of the store that its maps went to; None if no run has begun."""
        with self._explained("read"):
            row = self._database.execute("SELECT value FROM meta WHERE key = 'destination'").fetchone()
        return None if row is None else str(row[0])

    def done(self) -> dict[str, int]:
        """How many maps are done, by the fingerprint of their settings."""
        with self._explained("read"):
            query = "SELECT settings, count(*) FROM maps WHERE status = 'done' GROUP BY settings"
            return dict(self._database.execute(query))

    def broken(self) -> dict[str, int]:
        """How many maps there are whose overlay was found broken, by the fingerprint of their settings."""
        with self._explained("read"):
            query = "SELECT settings, count(*) FROM maps WHERE stage = 'verify' GROUP BY settings"
            return dict(self._database.execute(query))

    def mark_broken(self, found: Iterable[tuple[str, str, str]]) -> None:
        """Let maps that are done count as failed, so that the next run does them again; all or none.

        Args:
            found: of each the locator, the name, and what was found.

        Raises:
            ManifestError: it cannot be written.
        """
        with self._writing():
            self._database.executemany(
                "UPDATE maps SET status = 'failed', stage = 'verify', error = ?3, time = ?4 "
                "WHERE name = ?2 AND locator = ?1 AND status = 'done'",
                ((*row, _now()) for row in found),
            )

    def keep_sketch(self, invalid: str, sketch: QuantileSketch) -> None:
        """Write down what the whole set was found to hold, for later runs.

        Args:
            invalid: how invalid values were counted.
            sketch: all values.

        Raises:
            ManifestError: it cannot be written.
        """
        self._keep("sketch", [invalid, sketch.dump()])

    def let_locators_move(self) -> None:
        """From now on, a map whose locator another one gets is forgotten: what lies there is not its own any more.

        Raises:
            ManifestError: it cannot be written.
        """
        with self._writing():
            self._database.execute("CREATE INDEX IF NOT EXISTS maps_locator ON maps (locator)")
        self._locators_move = True

    def sketch(self, invalid: str) -> QuantileSketch | None:
        """What the last run over a whole ``dataset`` found, if it counted invalid values in this way.

        Raises:
            ManifestError: it cannot be read.
        """
        with self._explained("read"):
            counted, dumped = self._meta("sketch") or (None, "")
            return QuantileSketch.load(dumped) if counted == invalid else None

    def value_range(self) -> ValueRange:
        """The range of the last run, as one that another run can take over.

        Raises:
            ManifestError: it has none.
        """
        with self._explained("read"):
            setting, kind, span = self._meta("range") or (None, None, None)
        if kind == "unit":
            return UNIT
        if span is None:
            was = f"it was made with range {setting}" if setting else "it says nothing of one"
            raise ManifestError(f"{self.path} has no range to take over: {was}; make it with --range dataset")
        return ValueRange("fixed", *span)

    def claims(self) -> Iterator[tuple[str, str]]:
        """The locators that maps have, and the name of each."""
        with self._explained("read"):
            yield from self._database.execute("SELECT locator, name FROM maps WHERE status = 'done'")

    def counts(self) -> dict[str, int]:
        """How many maps there are of each status."""
        with self._explained("read"):
            return dict(self._database.execute("SELECT status, count(*) FROM maps GROUP BY status"))

    def rows(self, *, failed: bool = False) -> Iterator[tuple[object, ...]]:
        """The rows, in the order of the names; each has the values of :data:`COLUMNS`.

        Args:
            failed: also those of maps that failed.
        """
        return self._select("" if failed else "WHERE status = 'done'")

    def located(self) -> Iterator[dict[str, Any]]:
        """The rows that have a locator, by column: those of maps that are done, and of those found broken since."""
        for row in self._select("WHERE locator IS NOT NULL"):
            yield dict(zip(COLUMNS, row, strict=True))

    def _select(self, where: str) -> Iterator[tuple[object, ...]]:
        with self._explained("read"):
            there = {name for _, name, *_ in self._database.execute("PRAGMA table_info(maps)")}
            # An older manifest, read and not to be changed, lacks some.
            columns = (column if column in there else f"NULL AS {column}" for column in COLUMNS)
            for row in self._database.execute(
                f"SELECT {', '.join(columns)} FROM maps {where} ORDER BY name, source"  # noqa: S608  # names of our own
            ):
                # SQLite has no booleans.
                yield tuple(
                    bool(value) if value is not None and column in BOOLEANS else value
                    for column, value in zip(COLUMNS, row, strict=True)
                )

    def _prepare(self) -> None:
        ours = self._pragma("application_id") == APPLICATION_ID
        if not ours and (self._read_only or self._database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()):
            raise ManifestError(f"{self.path} is an SQLite file, but no manifest of ours: name another with --manifest")
        if ours and (version := self._pragma("user_version")) != VERSION:
            raise ManifestError(
                f"{self.path} has the manifest schema {version}, this version of async-maps reads schema {VERSION}: "
                "name another file with --manifest"
            )
        if self._read_only:
            return
        self._database.execute("PRAGMA journal_mode = WAL")
        # With WAL a crash of the process loses nothing; a power cut may lose the last commits, whose maps are redone.
        self._database.execute("PRAGMA synchronous = NORMAL")
        if not ours:
            self._database.executescript(SCHEMA)

    def _keep(self, key: str, value: object) -> None:
        with self._writing():
            self._database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def _meta(self, key: str) -> Any:
        """What is kept under a key, None if nothing is."""
        row = self._database.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def _pragma(self, name: str) -> int:
        return int(self._database.execute(f"PRAGMA {name}").fetchone()[0])

    def _rows(self, names: Sequence[str]) -> dict[str, tuple[str | None, ...]]:
        marks = ", ".join("?" * len(names))
        query = (
            "SELECT name, status, source, fingerprint, settings, stage FROM maps "  # noqa: S608  # question marks
            f"WHERE stage IS NOT 'source' AND name IN ({marks})"
        )
        return {name: tuple(row) for name, *row in self._database.execute(query, names)}

    def _take_names(self, maps: Sequence[ActivationMap]) -> list[bool]:
        """Note the names of a batch as taken; False for each that another map has taken before."""
        take = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
        self._database.execute("SAVEPOINT batch")
        if self._database.executemany(take, ((map_.name, map_.source) for map_ in maps)).rowcount == len(maps):
            self._database.execute("RELEASE batch")
            return [True] * len(maps)
        # Seldom: then each is asked for itself.
        self._database.execute("ROLLBACK TO batch")
        first = [self._database.execute(take, (map_.name, map_.source)).rowcount == 1 for map_ in maps]
        self._database.execute("RELEASE batch")
        return first

    def _refused(self, maps: Sequence[ActivationMap]) -> set[str]:
        """Which of the maps' sources, archives and folders are known as refused."""
        places = sorted({place for map_ in maps for place in _places(map_)})
        query = f"SELECT source FROM maps WHERE stage = 'source' AND source IN ({', '.join('?' * len(places))})"  # noqa: S608
        return {source for (source,) in self._database.execute(query, places)}

    def _duplicate(self, map_: ActivationMap) -> Failure:
        (first,) = self._database.execute("SELECT source FROM seen WHERE name = ?", (map_.name,)).fetchone()
        reason = f"another map of this run has the same name: {first}; rename one of them"
        return Failure(map_.name, map_.source, map_.fingerprint, "source", reason)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What is written in the context is written whole, or not at all."""
        with self._explained("written"):
            self._refuse_other_file()
            with self._transaction("IMMEDIATE"):
                yield

    @contextmanager
    def _transaction(self, kind: Literal["IMMEDIATE", "DEFERRED"]) -> Iterator[None]:
        self._database.execute(f"BEGIN {kind}")
        try:
            yield
        except BaseException:
            if self._database.in_transaction:
                self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    def _refuse_place(self) -> None:
        """Refuse what SQLite would take for a manifest, or would not explain."""
        if self._read_only and not os.path.exists(self.path):
            raise ManifestError(f"no such manifest: {self.path}")
        if not os.path.isdir(self.path.absolute().parent):
            raise ManifestError(f"the manifest {self.path} cannot be opened: there is no folder {self.path.parent}")
        if os.path.exists(self.path) and not os.path.isfile(self.path):
            raise ManifestError(f"the manifest {self.path} cannot be opened: it is not a file")

    def _refuse_other_file(self) -> None:
        """SQLite would go on writing to a file that nobody will find again."""
        if self._file is None:
            return
        try:
            is_there = os.path.samestat(self._file, os.stat(self.path))
        except FileNotFoundError:
            is_there = False
        if not is_there:
            raise ManifestError(
                f"the manifest {self.path} was moved, deleted or replaced while it was in use: run again to do what it "
                "does not know as done"
            )

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def _explained(self, doing: Doing) -> AbstractContextManager[None]:
        return translate_sqlite_errors(f"the manifest {self.path}", doing)


def _row(outcome: Outcome, settings: str) -> tuple[object, ...]:
    if isinstance(outcome, Receipt):
        return (
            outcome.name, outcome.locator, "done", outcome.source, outcome.size, outcome.width, outcome.height,
            outcome.etag, outcome.crc32, outcome.stored_at.isoformat(timespec="milliseconds"), None, None,
            outcome.fingerprint, settings, *(outcome.statistics or _NONE_COUNTED),
        )  # fmt: skip
    return (
        outcome.name, None, "failed", outcome.source, *(None,) * 5, _now(), outcome.stage, outcome.reason,
        outcome.fingerprint, settings, *_NONE_COUNTED,
    )  # fmt: skip


def _places(map_: ActivationMap) -> list[str]:
    """Where a map lies, from itself outwards: its source, its file, and the folders above."""
    if map_.path is None:
        return [map_.source]
    path = Path(map_.path)
    return [map_.source, printable(map_.path), *(printable(str(place)) for place in (path, *path.parents))]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
