"""What a manifest tells of its runs, beside the rows of their maps. It blocks: call it in a thread."""

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
    from collections.abc import Iterator


class KeptRun(NamedTuple):
    """What it takes to make overlays of a manifest once more."""

    source: str | None
    """Where their maps came from; None if that was no place."""
    settings: str
    """The fingerprint of the settings that shaped them, as in the rows."""
    shaping: dict[str, Any]
    """Those settings, for :meth:`~async_maps.settings.Settings.shaped_as`."""


class ManifestMetadata(ManifestFile):
    """The destination of a manifest, and the range, the value sketch and the settings of its runs."""

    def keep_destination(self, destination: str) -> None:
        """Write down the identity of the store that the maps go to."""
        self._keep("destination", destination)

    def destination(self) -> str | None:
        """The identity of the store that its maps went to; None if no run has begun."""
        return next(self._kept("destination"), None)

    def keep_range(self, value_range: ValueRange, setting: str) -> None:
        """Write down which range the run's colors span, a known one, and the setting that asked for it."""
        span = None if value_range.is_relative else [value_range.low, value_range.high]
        self._keep("range", [setting, value_range.kind, span])

    def value_range(self) -> ValueRange:
        """The range of the last run, as one that another run can take over; a ManifestError if it has none."""
        with self._reading():
            setting, kind, span = next(self._kept("range"), (None, None, None))
        if kind == "unit":
            return UNIT
        if span is None:
            was = f"it was made with range {setting}" if setting else "it says nothing of one"
            raise ManifestError(f"{self.path} has no range to take over: {was}; make it with --range dataset")
        return ValueRange("fixed", *span)

    def keep_run(self, run: KeptRun) -> None:
        """Write down what it takes to do maps of a run once more; of two that are alike, the later one stays."""
        digest = hashlib.sha256(os.fsencode(run.source or "")).hexdigest()[:32]
        self._keep(f"run {run.settings} {digest}", run)

    def runs(self) -> list[KeptRun]:
        """The different runs that were kept."""
        return [KeptRun(*run) for run in self._kept("run *")]

    def keep_sketch(self, invalid: str, sketch: QuantileSketch) -> None:
        """Write down what the whole set was found to hold, with invalid values counted in this way."""
        self._keep("sketch", [invalid, sketch.dump()])

    def sketch(self, invalid: str) -> QuantileSketch | None:
        """What the last run over a whole ``dataset`` found, if it counted invalid values in this way."""
        with self._reading():
            counted, dumped = next(self._kept("sketch"), (None, ""))
            return QuantileSketch.load(dumped) if counted == invalid else None

    def _keep(self, key: str, value: object) -> None:
        with self._writing() as database:
            database.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def _kept(self, keys: str) -> Iterator[Any]:
        """The values of the keys that match a pattern (``run *``), in the order of the keys."""
        with self._reading() as database:
            rows = database.execute("SELECT value FROM meta WHERE key GLOB ? ORDER BY key", (keys,)).fetchall()
            return iter([json.loads(value) for (value,) in rows])
