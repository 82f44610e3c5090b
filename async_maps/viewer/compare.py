"""Two manifests joined by name: what differs between the maps of two models. Everything here blocks; thread-safe.

Three measures, each for one pair of maps:

- ``disagreement``: 1 - SIM, where SIM is the sum of the minima of two maps that are each divided by their sum. 0: the
  same places have the same share of the attention; 1: no place has any in both. SIM is from T. Judd, F. Durand and A.
  Torralba, "A benchmark of computational models of saliency to predict human fixations", MIT technical report, 2012; Z.
  Bylinskii and others, "What do different evaluation metrics tell us about saliency models?", IEEE TPAMI 41(3), 2019,
  compare it with others. It needs the pixels of both overlays: their intensities, averaged to at most 64 pixels a side.
- ``mean_difference``: the mean of the second map minus that of the first, in the units of the maps.
- ``center_distance``: the distance of their centers of mass, as a share of the diagonal.
"""

from __future__ import annotations

import logging
import math
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from async_maps.errors import AsyncMapsError, ObjectError
from async_maps.viewer.orders import Snapshot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from async_maps.viewer.pixels import Plane
    from async_maps.viewer.side import Side

_logger = logging.getLogger("async_maps")

DISAGREEMENT = "disagreement"
MEASURES = (DISAGREEMENT, "mean_difference", "center_distance")
PAIRED = "paired"
"""The state of rows that have a partner in the second manifest."""
_SIDE = 64
_THREADS = 4
_BATCH = 100
_MAX_MEASURED = 50_000
"""The first pairs in the order of the names whose pixels are read."""


def disagreement(one: Plane, other: Plane) -> float:
    """Return 1 - SIM of two maps (see above), 0 to 1; pixels without a value count as 0."""
    maps = [
        (plane.values if plane.valid is None else np.where(plane.valid, plane.values, 0)).astype(np.float32)
        for plane in (one, other)
    ]
    height, width = min((plane.shape for plane in maps), key=math.prod)
    scale = min(1.0, _SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    maps = [
        plane if plane.shape[::-1] == size else np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BOX))
        for plane in maps
    ]
    sums = [float(plane.sum(dtype=np.float64)) for plane in maps]
    if not all(sums):
        return 0.0 if not any(sums) else 1.0
    similarity = np.minimum(maps[0] / sums[0], maps[1] / sums[1]).sum(dtype=np.float64)
    # The rest is the error of float32.
    return round(float(np.clip(1 - similarity, 0, 1)), 6)


class Comparison:
    """A second manifest, beside the first one.

    Attributes:
        side: the second manifest, which is closed with this.
        other: its rows in memory; None before they are read.
    """

    def __init__(self, first: Side, side: Side) -> None:
        self.side = side
        self.other: Snapshot | None = None
        self._first = first
        self._changing = Lock()
        self._stopped = Event()
        self._can_measure = self._is_closed = False
        self._threads: list[Thread] = []
        self._snapshot: Snapshot | None = None
        self._partners = np.empty(0, np.int64)
        self._measured = np.empty(0)
        self._to_measure: list[int] = []
        self._next = 0

    def close(self) -> None:
        """Stop measuring, close the connections, and delete temporary files."""
        self._is_closed = True
        self._stop()
        self.side.close()

    def join(self, snapshot: Snapshot) -> None:
        """Join a snapshot of the first manifest with the second one, and give it the columns of the measures."""
        self._stop()
        other = Snapshot(self.side.rows, hashed=True)
        _, places, partners = np.intersect1d(snapshot.hashes, other.hashes, return_indices=True)
        there = np.full(len(snapshot), -1, np.intp)
        there[places] = partners
        is_paired = (there >= 0) & snapshot.state("done") & (_at(other.state("done"), there) == 1)
        measures = np.full(len(snapshot), np.nan)

        def difference() -> NDArray[np.float64]:
            with np.errstate(all="ignore"):
                return _finite(_at(other.column("mean"), there) - snapshot.column("mean"))

        def distance() -> NDArray[np.float64]:
            steps = []
            with np.errstate(all="ignore"):
                for center, size in (("center_x", "width"), ("center_y", "height")):
                    own, theirs = (((of.column(center) + 0.5) / of.column(size)) for of in (snapshot, other))
                    steps.append(_at(theirs, there) - own)
                return _finite(np.hypot(*steps) / np.sqrt(2))

        def measured() -> NDArray[np.float64]:
            return measures.copy()

        with self._changing:
            self._snapshot, self.other = snapshot, other
            self._partners = np.where(is_paired, _at(other.numbers, there), -1).astype(np.int64)
            self._measured = measures
            self._to_measure = np.flatnonzero(is_paired)[:_MAX_MEASURED].tolist()
            self._next = 0
            self._can_measure = not self._is_closed
        snapshot.define("mean_difference", difference)
        snapshot.define("center_distance", distance)
        snapshot.define(DISAGREEMENT, measured)
        snapshot.put_state(PAIRED, is_paired)

    def beside(self, rows: Sequence[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
        """Return rows of the first manifest with the row of the second one as ``other``, and their measures."""
        with self._changing:
            snapshot, partners, measured = self._snapshot, self._partners, self._measured
        numbers = np.array([-1 if row is None else row["row"] for row in rows], np.int64)
        places = np.full(len(rows), -1) if snapshot is None else snapshot.places_of(numbers)
        pairs = [int(partners[place]) if place >= 0 else -1 for place in places]
        with self.side.rows.opened() as manifest:
            found = iter(manifest.page([number for number in pairs if number >= 0]))
        result: list[dict[str, Any] | None] = []
        for row, place, number in zip(rows, places, pairs, strict=True):
            other = next(found) if number >= 0 else None
            # Since the snapshot, another map may have got the number.
            other = other if row and other and row["name"] == other["name"] else None
            known = float(measured[place]) if other and not np.isnan(measured[place]) else None
            result.append(row and {**row, "other": other, DISAGREEMENT: known, **_measures(row, other)})
        return result

    def measure(self) -> None:
        """Begin to measure the disagreement of all pairs if that has not begun; use what is measured so far."""
        with self._changing:
            if self._snapshot is None or not self._can_measure:
                return
            self._snapshot.put(DISAGREEMENT, self._measured.copy())
            if not self._threads:
                self._stopped.clear()
                # Daemons: Python would wait for them before it closes a viewer that is still open.
                self._threads = [
                    Thread(target=self._measure_some, name="async-maps-view", daemon=True) for _ in range(_THREADS)
                ]
                for thread in self._threads:
                    thread.start()

    def progress(self) -> dict[str, Any]:
        """Return how many pairs there are, and how many are measured, for JSON."""
        with self._changing:
            return {
                "pairs": int((self._partners >= 0).sum()),
                "to_measure": len(self._to_measure),
                "measured": int((~np.isnan(self._measured)).sum()),
                "is_measuring": any(thread.is_alive() for thread in self._threads),
            }

    def _measure_some(self) -> None:
        while not self._stopped.is_set():
            with self._changing:
                snapshot, partners, measured = self._snapshot, self._partners, self._measured
                places = self._to_measure[self._next : self._next + _BATCH]
                self._next += len(places)
            if not places or snapshot is None:
                return
            with self._first.rows.opened() as manifest:
                rows = manifest.page(snapshot.numbers[places].tolist())
            with self.side.rows.opened() as manifest:
                others = manifest.page(partners[places].tolist())
            for place, row, other in zip(places, rows, others, strict=True):
                if self._stopped.is_set():
                    return
                if row is not None and other is not None and row["name"] == other["name"]:
                    try:
                        measured[place] = self.measured(row, other)
                    except AsyncMapsError as error:
                        _logger.debug("%s cannot be compared: %s", row["name"], error)

    def measured(self, row: dict[str, Any], other: dict[str, Any]) -> float:
        """Return the disagreement of a pair; NaN if an overlay is missing or no map.

        Raises:
            StoreError: a store cannot be reached.
        """
        try:
            return disagreement(self._first.plane(row), self.side.plane(other))
        except ObjectError as error:
            _logger.debug("%s cannot be compared: %s", row["name"], error)
            return float("nan")

    def _stop(self) -> None:
        """End the threads; none starts until manifests are joined."""
        with self._changing:
            self._can_measure = False
            self._stopped.set()
            threads, self._threads = self._threads, []
        for thread in threads:
            thread.join()


def _at(values: NDArray[Any], places: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return values at places, NaN where the place is -1."""
    found: NDArray[np.float64] = np.where(places >= 0, np.append(values.astype(np.float64), np.nan)[places], np.nan)
    return found


def _finite(values: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    # No run writes a width of 0, or numbers whose difference is infinite.
    found: NDArray[np.float64] = np.where(np.isfinite(values), values, np.nan)
    return found


def _measures(row: dict[str, Any], other: dict[str, Any] | None) -> dict[str, float | None]:
    """Return the measures of a pair that need no pixels, as in the columns."""
    found: dict[str, float | None] = {"mean_difference": None, "center_distance": None}
    if other is None:
        return found
    if None not in {row["mean"], other["mean"]}:
        found["mean_difference"] = other["mean"] - row["mean"]
    centers = [(of["center_x"], of["center_y"], of["width"], of["height"]) for of in (row, other)]
    # No run writes a width of 0.
    if all(None not in center and all(center[2:]) for center in centers):
        (x, y), (other_x, other_y) = (((x + 0.5) / width, (y + 0.5) / height) for x, y, width, height in centers)
        found["center_distance"] = math.hypot(other_x - x, other_y - y) / math.sqrt(2)
    # Nor numbers whose difference JSON does not have.
    return {name: value if value is not None and math.isfinite(value) else None for name, value in found.items()}
