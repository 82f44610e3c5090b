"""The manifest: one SQLite row for each map, written after its receipt. Everything here blocks.

The next run skips maps that are done and unchanged. Only one run at a time can write it (:mod:`.lock`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from async_maps.filesystems.endpoints import Identity
from async_maps.keys import printable
from async_maps.manifest.claims import same_name
from async_maps.manifest.samples import ManifestSamples
from async_maps.manifest.schema import BOOLEANS, COLUMNS, UPSERT
from async_maps.manifest.stale import StaleRows
from async_maps.outcomes import Failure, MapStatistics, Outcome, Receipt
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from collections.abc import Collection, Generator, Iterable, Iterator, Sequence

    from async_maps.manifest.destination import Relocation
    from async_maps.outcomes import Stage

Select: TypeAlias = Literal["changed", "failed", "all"]
"""The maps that a run does: ``changed`` (not done, or changed since), ``failed`` (failed before), or ``all``."""


RepairMode: TypeAlias = Literal["broken", "moved"]
"""The maps that a repair does: those whose overlay is marked as broken and was made with these settings, from this
source (``broken``) or from any source (``moved``). Other rows are not changed."""


@dataclass(slots=True)
class Plan:
    """The maps of a batch to do, the number of maps to skip, and the refused maps."""

    todo: list[ActivationMap] = field(default_factory=list)
    skipped: int = 0
    refused: list[Failure] = field(default_factory=list)
    """Maps with the name of another map of this run."""
    has_others: bool = False
    """Whether maps to skip have overlays that were made with other settings."""


class Located(NamedTuple):
    """The overlay of a done map; ``etag`` is None if the store has none."""

    locator: str
    size: int
    etag: str | None
    crc32: str


class Manifest(StaleRows, ManifestSamples):
    """An open manifest: a row for each map, and the data of its runs."""

    _locators_move = False
    relocation: Relocation | None = None
    """The new address of the destination, in a manifest that is only read."""
    _may_have_sent = False

    def begin(self, destination: str) -> None:
        """Begin a run to the store with this identity."""
        self.prepare()
        known = self.destination() or destination
        self.keep_destination(destination)
        with self._writing() as database:
            if Identity.parse(known).destination != Identity.parse(destination).destination:
                # What was sent there is not here. A manifest with maps is refused, or has a new address.
                database.execute("DELETE FROM sent")
            database.execute("UPDATE sent SET is_new = 0 WHERE is_new")
            self._may_have_sent = database.execute("SELECT 1 FROM sent LIMIT 1").fetchone() is not None

    def prepare(self) -> None:
        """Prepare :meth:`plan`, without writing to the manifest."""
        self.prepare_listing()

    def plan(self, maps: Sequence[ActivationMap], settings: str, mode: Select | RepairMode) -> Plan:
        """Decide which maps of a batch (a few hundred) to do with settings that have this fingerprint."""
        plan = Plan()
        with self._reading() as database, database:
            database.execute("BEGIN")
            known = self._rows([map_.name for map_ in maps])
            failed_places = self._failed_places(maps) if mode == "failed" else {}
            sent = self._sent(maps, settings) if self._may_have_sent else set()
            taken = self._take_names(maps)
            for map_, is_first in zip(maps, taken, strict=True):
                if not is_first:
                    plan.refused.append(self._duplicate(map_))
                    continue
                row = known.get(map_.name, ())
                unchanged = map_.fingerprint is not None and row[:4] == (
                    "done", map_.source, map_.fingerprint, settings
                )  # fmt: skip
                broken = row[3:5] == (settings, "verify")
                failed = row[:1] == ("failed",) or (not unchanged and self._failed_with(map_, row, failed_places))
                wanted = {
                    "changed": not unchanged,
                    "failed": failed,
                    "all": True,
                    "broken": broken and row[1] == map_.source,
                    "moved": broken,
                }
                if wanted[mode]:
                    map_.maybe_at = "" if map_.name in sent else row[5] if row else map_.maybe_at
                    plan.todo.append(map_)
                else:
                    plan.skipped += 1
                    plan.has_others |= row[:1] == ("done",) and row[3] != settings
        return plan

    def renamed(self, maps: Sequence[ActivationMap]) -> list[tuple[ActivationMap, str]]:
        """Return the maps that are done only under other names, each with one of these; reads all rows."""
        with self._reading() as database:
            known = self._rows([map_.name for map_ in maps])
            new = {map_.source: map_ for map_ in maps if map_.name not in known}
            query = (
                "SELECT source, min(name) FROM maps WHERE status = 'done' "  # noqa: S608  # question marks
                f"AND source IN ({', '.join('?' * len(new))}) GROUP BY source"
            )
            return [(new[source], name) for source, name in database.execute(query, list(new))] if new else []

    def known(self, maps: Sequence[ActivationMap], *, done_with: str | None = None) -> set[str]:
        """Return the sources of the maps that an earlier run saw with the same name, source and fingerprint.

        With the fingerprint of settings in ``done_with``, only maps that are done with these settings.
        """
        with self._reading():
            rows = self._rows([map_.name for map_ in maps])
        if done_with is not None:
            rows = {name: row for name, row in rows.items() if row[0] == "done" and row[3] == done_with}
        return {
            map_.source
            for map_ in maps
            if map_.fingerprint is not None and rows.get(map_.name, ())[1:3] == (map_.source, map_.fingerprint)
        }

    def note_sending(self, maps: Iterable[ActivationMap], settings: str) -> None:
        """Record maps before they are uploaded: if the run dies, their overlays may be in the store."""
        with self._writing() as database:
            rows = [(map_.name, settings) for map_ in maps]
            database.executemany("INSERT OR IGNORE INTO sent (name, settings, is_new) VALUES (?, ?, 1)", rows)

    def write(self, outcomes: Sequence[Outcome], settings: str) -> None:
        """Write the rows of a batch in one transaction."""
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        with self._writing() as database:
            root = self._new_root_id()
            self._write_sent(outcomes, failures, settings)
            # Rows that were refused at their source are not unique by name, so the upsert does not replace them.
            database.executemany(
                "DELETE FROM maps WHERE stage = 'source' AND source = ? AND root IS ?",
                [(outcome.source, root) for outcome in outcomes],
            )
            database.executemany(
                "DELETE FROM maps WHERE name = ? AND source = ?",
                [(failure.name, failure.source) for failure in failures if failure.stage == "source"],
            )
            if self._locators_move:
                database.executemany(
                    "DELETE FROM maps WHERE locator = ? AND name <> ?",
                    [(outcome.locator, outcome.name) for outcome in outcomes if isinstance(outcome, Receipt)],
                )
            database.executemany(UPSERT, [(*_row(outcome, settings), root) for outcome in outcomes])

    def _write_sent(self, outcomes: Sequence[Outcome], failures: Sequence[Failure], settings: str) -> None:
        names = [(outcome.name, settings) for outcome in outcomes if isinstance(outcome, Receipt)]
        self._database.executemany("DELETE FROM sent WHERE name = ? AND (settings = ? OR locator IS NOT NULL)", names)
        # A failed map keeps what an earlier run knows, and loses its locator.
        names = [(failure.name, settings) for failure in failures if not failure.maybe_stored]
        self._database.executemany("DELETE FROM sent WHERE name = ? AND settings = ? AND is_new", names)
        self._database.executemany(
            "INSERT OR REPLACE INTO sent SELECT name, settings, 0, locator, ifnull(file, source), root FROM maps "
            "WHERE name = ? AND locator IS NOT NULL",
            [(failure.name,) for failure in failures],
        )

    def done(self) -> dict[str, int]:
        """Return the number of done maps by the fingerprint of their settings."""
        return self._counted("SELECT settings, count(*) FROM maps WHERE status = 'done' GROUP BY settings")

    def broken(self) -> dict[str, int]:
        """Return the number of maps with a broken overlay by the fingerprint of their settings."""
        return self._counted("SELECT settings, count(*) FROM maps WHERE stage = 'verify' GROUP BY settings")

    def mark_broken(self, found: Iterable[tuple[str, str, str]]) -> None:
        """Mark done maps as failed, in one transaction, so that the next run repeats them.

        Each item is a locator, a name, and the reason.
        """
        with self._writing() as database:
            database.executemany(
                "UPDATE maps SET status = 'failed', stage = 'verify', error = ?, time = ? "
                "WHERE name = ? AND locator = ? AND status = 'done'",
                ((error, _now(), name, locator) for locator, name, error in found),
            )

    def let_locators_move(self) -> None:
        """From now on, delete the row of a map when another map overwrites its overlay, at the same locator."""
        with self._writing() as database:
            database.execute("CREATE INDEX IF NOT EXISTS maps_locator ON maps (locator)")
        self._locators_move = True

    def sample(self, count: int) -> list[Located]:
        """Return up to this number of done maps, from the oldest row to the newest at equal distances."""
        query = (
            "SELECT locator, bytes, etag, crc32 FROM maps WHERE status = 'done' AND rowid >= ? ORDER BY rowid LIMIT 1"
        )
        with self._reading() as database:
            low, high = database.execute("SELECT min(rowid), max(rowid) FROM maps WHERE status = 'done'").fetchone()
            if low is None:
                return []
            steps = [low + (high - low) * step // max(1, count - 1) for step in range(count)]
            found = (database.execute(query, (step,)).fetchone() for step in steps)
            return list(dict.fromkeys(Located(*row) for row in found))

    def relocate(self, relocation: Relocation) -> None:
        """Save the new address of the destination, and change the locators below it."""
        old, new = relocation.old, relocation.new
        with self._writing() as database:
            self._save(database, "destination", relocation.identity)
            if old != new:
                for table in ("maps", "sent"):
                    database.execute(
                        f"UPDATE {table} SET locator = ? || substr(locator, ?) WHERE substr(locator, 1, ?) = ?",  # noqa: S608  # our own text
                        (new, len(old) + 1, len(old), old),
                    )

    def claims(self) -> Iterator[tuple[str, str]]:
        """Yield the locator and the name of each done map."""
        with self._reading() as database:
            for locator, name in database.execute("SELECT locator, name FROM maps WHERE status = 'done'"):
                yield (locator if self.relocation is None else self.relocation(locator)), name

    def counts(self) -> dict[str, int]:
        """Return the number of maps by status."""
        # From indexes, because the table is ten times as large.
        with self._reading() as database:
            unique, refused, failed = database.execute(
                "SELECT (SELECT count(*) FROM maps WHERE stage IS NOT 'source'), "
                "(SELECT count(*) FROM maps WHERE stage = 'source'), "
                "(SELECT count(*) FROM maps WHERE status = 'failed')"
            ).fetchone()
        counts = {"done": unique + refused - failed, "failed": failed}
        return {status: count for status, count in counts.items() if count}

    def rows(self, *, failed: bool = False) -> Generator[tuple[object, ...], None, None]:
        """Yield the rows of done maps, or of all with ``failed``, by name; each has the values of :data:`COLUMNS`."""
        return self._select("" if failed else "WHERE status = 'done'")

    def rows_with_files(self) -> Generator[tuple[object, ...], None, None]:
        """Yield all rows, by name; each has the values of :data:`COLUMNS`, and the file, or None for the source."""
        return self._select("", (*COLUMNS, "file"))

    def stored_locators(self, limit: int) -> list[str]:
        """Return the locators of random small overlays that are stored, and that no run is about to replace."""
        with self._reading() as database:
            rows = database.execute(
                "SELECT locator FROM maps WHERE status = 'done' AND bytes <= 1000000 "
                "AND name NOT IN (SELECT name FROM sent) ORDER BY random() LIMIT ?",
                (limit,),
            ).fetchall()
        return [str(locator) for (locator,) in rows]

    def failures(self) -> Generator[tuple[object, ...], None, None]:
        """Yield the rows of failed maps, like :meth:`rows`."""
        return self._select("WHERE status = 'failed'")

    def reasons(self, limit: int) -> Iterator[tuple[str, str, Stage, str]]:
        """Yield name, source, stage and reason of failed maps, at most ``limit``."""
        with self._reading() as database:
            yield from database.execute(
                "SELECT name, source, stage, error FROM maps WHERE status = 'failed' LIMIT ?", (limit,)
            )

    def has_any(self, locators: Collection[str]) -> bool:
        """Whether a row has one of a few locators."""
        query = f"SELECT 1 FROM maps WHERE locator IN ({', '.join('?' * len(locators))}) LIMIT 1"  # noqa: S608  # question marks only
        with self._reading() as database:
            return database.execute(query, tuple(locators)).fetchone() is not None

    def lists_overlays(self) -> bool:
        """Whether a row has a locator."""
        with self._reading() as database:
            return database.execute("SELECT 1 FROM maps WHERE locator IS NOT NULL LIMIT 1").fetchone() is not None

    def sent_with(self, key: str, maps: Sequence[ActivationMap]) -> set[str]:
        """Return the names of a few maps whose overlay an earlier run with this key template may have stored."""
        if not self._may_have_sent:
            return set()
        fingerprints = [run.settings for run in self.runs() if run.shaping["key"] == key]
        return set[str]().union(*(self._sent(maps, fingerprint) for fingerprint in fingerprints))

    def sent(self) -> Iterator[tuple[str, str, str | None, bool]]:
        """Yield the maps whose overlay may be in the store, though no row says so.

        Each has its name, the fingerprint of the settings, the locator if a row had one, and whether it has failed.
        """
        query = (
            "SELECT name, settings, locator, locator IS NOT NULL "
            "OR EXISTS (SELECT 1 FROM maps WHERE maps.name = sent.name AND status = 'failed') "
            "FROM sent ORDER BY name, settings"
        )
        with self._reading() as database:
            for name, settings, locator, is_failed in database.execute(query):
                if locator is not None and self.relocation is not None:
                    locator = self.relocation(locator)  # noqa: PLW2901  # the same overlay
                yield name, settings, locator, bool(is_failed)

    def located(self) -> Iterator[dict[str, Any]]:
        """Yield the rows with a locator, as dicts: maps that are done, or whose overlay was found broken later."""
        for values in self._select("WHERE locator IS NOT NULL"):
            row = dict(zip(COLUMNS, values, strict=True))
            if self.relocation is not None:
                row["locator"] = self.relocation(str(row["locator"]))
            yield row

    def _select(self, where: str, columns: Sequence[str] = COLUMNS) -> Generator[tuple[object, ...], None, None]:
        query = f"SELECT {', '.join(columns)} FROM maps {where} ORDER BY name, source"  # noqa: S608  # names of our own
        with self._reading() as database:
            for row in database.execute(query):
                # SQLite has no booleans.
                yield tuple(
                    bool(value) if value is not None and column in BOOLEANS else value
                    for column, value in zip(columns, row, strict=True)
                )

    def _counted(self, query: str) -> dict[str, int]:
        with self._reading() as database:
            return dict(database.execute(query))

    def _rows(self, names: Sequence[str]) -> dict[str, tuple[str | None, ...]]:
        marks = ", ".join("?" * len(names))
        query = (
            "SELECT name, status, source, fingerprint, settings, stage, locator FROM maps "  # noqa: S608  # question marks
            f"WHERE stage IS NOT 'source' AND name IN ({marks})"
        )
        return {name: tuple(row) for name, *row in self._database.execute(query, names)}

    def _take_names(self, maps: Sequence[ActivationMap]) -> list[bool]:
        """Record the names of a batch; return False for each name that was already recorded."""
        take = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
        self._database.execute("SAVEPOINT batch")
        if self._database.executemany(take, ((map_.name, map_.source) for map_ in maps)).rowcount == len(maps):
            self._database.execute("RELEASE batch")
            return [True] * len(maps)
        # There is a duplicate: insert the names one by one to find it.
        self._database.execute("ROLLBACK TO batch")
        first = [self._database.execute(take, (map_.name, map_.source)).rowcount == 1 for map_ in maps]
        self._database.execute("RELEASE batch")
        return first

    def _failed_places(self, maps: Sequence[ActivationMap]) -> dict[str, set[str]]:
        """Return the files and folders of the maps, and the listing, that have failed rows, with their states then."""
        places = sorted({place for map_ in maps for place in self._places(map_)})
        query = (
            "SELECT ifnull(file, source), fingerprint FROM maps WHERE status = 'failed' AND root IS ? "  # noqa: S608  # question marks only
            f"AND ifnull(file, source) IN ({', '.join('?' * len(places))})"
        )
        found: dict[str, set[str]] = {}
        for place, fingerprint in self._database.execute(query, (self._root_id(), *places)):
            found.setdefault(place, set()).add(_state(fingerprint))
        return found

    def _failed_with(self, map_: ActivationMap, row: tuple[str | None, ...], failed: dict[str, set[str]]) -> bool:
        """Whether a map's file, a folder above it or the listing failed, when the map had no row, or was another."""
        places = [place for place in self._places(map_) if place in failed] if failed else []
        if not row:
            return bool(places)
        return any(place != self.root and failed[place] != {_state(row[2])} for place in places)

    def _places(self, map_: ActivationMap) -> list[str]:
        if map_.path is None:
            return [map_.source]
        return [self.root, map_.file, *(printable(str(folder)) for folder in Path(map_.path).parents)]

    def _sent(self, maps: Sequence[ActivationMap], settings: str) -> set[str]:
        """Return the names of the maps whose overlay an earlier run may have stored, though no row says so."""
        query = f"SELECT name FROM sent WHERE settings = ? AND name IN ({', '.join('?' * len(maps))})"  # noqa: S608  # question marks only
        return {name for (name,) in self._database.execute(query, [settings, *(map_.name for map_ in maps)])}

    def _duplicate(self, map_: ActivationMap) -> Failure:
        (first,) = self._database.execute("SELECT source FROM seen WHERE name = ?", (map_.name,)).fetchone()
        return same_name(map_, first)


def _row(outcome: Outcome, settings: str) -> tuple[object, ...]:
    if isinstance(outcome, Receipt):
        return (
            outcome.name, outcome.locator, "done", outcome.source, outcome.size, outcome.width, outcome.height,
            outcome.etag, outcome.crc32, outcome.stored_at.isoformat(timespec="milliseconds"), None, None,
            outcome.fingerprint, settings, *outcome.statistics, _other(outcome.file, outcome.source),
        )  # fmt: skip
    return (
        outcome.name, None, "failed", outcome.source, *(None,) * 5, _now(), outcome.stage, outcome.reason,
        outcome.fingerprint, settings, *(None,) * len(MapStatistics._fields), _other(outcome.file, outcome.source),
    )  # fmt: skip


def _other(file: str, source: str) -> str | None:
    """Return the file of a row, if it is not its source."""
    return file if file and file != source else None


def _state(fingerprint: str | None) -> str:
    """Return the state of a whole file, from the fingerprint of a map in it."""
    return (fingerprint or "").partition(" ")[0]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
