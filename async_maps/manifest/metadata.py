"""The data of the runs in a manifest, such as destination and settings. Everything here blocks."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from async_maps.errors import ManifestError
from async_maps.manifest.file import ManifestFile
from async_maps.render.ranges import UNIT, ValueRange
from async_maps.render.sketch import QuantileSketch

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator


class KeptRun(NamedTuple):
    """The data of a run that are needed to repair its overlays."""

    source: str | None
    """The source of the maps; None if it cannot be read again."""
    settings: str
    """The fingerprint of the settings, as in the rows."""
    shaping: dict[str, Any]
    """The settings that affect overlays, for :meth:`~async_maps.settings.Settings.shaped_as`."""


class ManifestMetadata(ManifestFile):
    """The destination of a manifest, and the range, the value sketch and the settings of its runs."""

    def keep_destination(self, destination: str) -> None:
        """Save the identity of the store of the run."""
        self._keep("destination", destination)

    def destination(self) -> str | None:
        """Return the identity of the store of the last run; None if there was no run."""
        return next(self._kept("destination"), None)

    def keep_promises(self, identity: str, promises: dict[str, Any]) -> None:
        """Save what the store with this identity has proved to keep."""
        self._keep(f"promises {_digest(identity)}", promises)

    def promises(self, identity: str) -> dict[str, Any] | None:
        """Return what the store with this identity proved in earlier runs; None if it proved nothing."""
        with self._reading():
            return next(self._kept(f"promises {_digest(identity)}"), None)

    def keep_range(self, value_range: ValueRange, setting: str) -> None:
        """Save the value range of the run, a known one, and the setting that it comes from."""
        span = None if value_range.is_relative else [value_range.low, value_range.high]
        self._keep("range", [setting, value_range.kind, span])

    def value_range(self) -> ValueRange:
        """Return the value range of the last run; raise ManifestError if it was not the same for all maps."""
        with self._reading():
            setting, kind, span = next(self._kept("range"), (None, None, None))
        if kind == "unit":
            return UNIT
        if span is None:
            was = f"its run used range {setting}" if setting else "it has no run yet"
            raise ManifestError(f"{self.path} has no range for other runs: {was}; run it with range dataset")
        return ValueRange("fixed", *span)

    def keep_run(self, run: KeptRun) -> None:
        """Save the data for a repair; replace those of an earlier run with the same source and fingerprint."""
        self._keep(f"run {run.settings} {_digest(run.source or '')}", run)

    def runs(self) -> list[KeptRun]:
        """Return all runs that were saved."""
        return [KeptRun(*run) for run in self._kept("run *")]

    def keep_sketch(self, counted: str, sketch: QuantileSketch) -> None:
        """Save the sketch of all values, and the settings that decide which values it counts."""
        self._keep("sketch", [counted, sketch.dump()])

    def sketch(self, counted: str) -> QuantileSketch | None:
        """Return the sketch of the last ``dataset`` run, if it counted the same values."""
        with self._reading():
            found, dumped = next(self._kept("sketch"), (None, ""))
            return QuantileSketch.load(dumped) if found == counted else None

    def keep_refused_prune(self, root: str, count: int | None) -> None:
        """Save how many rows of a source a run refused to prune; None if none are refused anymore."""
        self._keep(f"refused prune {_digest(root)}", count)

    def refused_prune(self, root: str) -> int | None:
        """Return how many rows of a source the last run that pruned refused to prune, or None."""
        with self._reading():
            return next(self._kept(f"refused prune {_digest(root)}"), None)

    def _keep(self, key: str, value: object) -> None:
        with self._writing() as database:
            self._save(database, key, value)

    @staticmethod
    def _save(database: sqlite3.Connection, key: str, value: object) -> None:
        database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def _kept(self, keys: str) -> Iterator[Any]:
        """Return the values of the keys that match a pattern (``run *``), in the order of the keys."""
        with self._reading() as database:
            rows = database.execute("SELECT value FROM meta WHERE key GLOB ? ORDER BY key", (keys,)).fetchall()
            return iter([json.loads(value) for (value,) in rows])


def _digest(place: str) -> str:
    return hashlib.sha256(os.fsencode(place)).hexdigest()[:32]
