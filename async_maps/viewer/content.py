"""What the viewer shows: rows, orders, overlays and images of a manifest. Everything here blocks; thread-safe."""

from __future__ import annotations

import base64
import os
import secrets
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Any

from async_maps.errors import SettingsError
from async_maps.viewer.groups import Groups
from async_maps.viewer.images import Images
from async_maps.viewer.orders import COLUMNS, STATES, Request, Snapshot
from async_maps.viewer.overlays import UNKNOWN, Overlays
from async_maps.viewer.rows import ViewedRows

if TYPE_CHECKING:
    from os import PathLike
    from typing import Self

    from async_maps.settings import S3Settings
    from async_maps.viewer.orders import Order

FIRST = "first"
"""The id of the order by name before all names are read."""
FIRST_ROWS = 2000
"""The rows of that order that can be read."""
COLORMAPS = (
    "jet", "viridis", "inferno", "magma", "plasma", "cividis", "turbo", "gray", "hot", "RdBu_r", "coolwarm",
)  # fmt: skip
_MOST_LAYERS = 24


class Content:
    """A manifest or a plan, its overlays, and the images below them.

    Attributes:
        rows: the rows.
        overlays: the overlays.
        images: the images; None if no place was given.
        session: a text that no other server has; browsers keep images under it.

    Raises:
        AsyncMapsError: the manifest, the plan or the images cannot be read.
    """

    def __init__(self, manifest: str | PathLike[str], images: str | None = None, s3: S3Settings | None = None) -> None:
        with ExitStack() as stack:
            self.rows = stack.enter_context(ViewedRows(manifest, s3))
            self._runs = self.rows.runs()
            self.overlays = Overlays(self._runs, s3)
            stack.callback(self.overlays.close)
            self._place_of_images = images
            self.images = None if images is None else Images(images, s3)
            if self.images is not None:
                stack.callback(self.images.close)
            self._opened = stack.pop_all()
        self.session = secrets.token_hex(4)
        self._loading = Lock()
        self._snapshot: Snapshot | None = None
        self._groups: Groups | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and delete temporary files."""
        self._opened.close()

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to know first, for JSON."""
        runs = {run.settings: run for run in self._runs}
        return {
            "name": os.path.basename(self.rows.address.rstrip("/")) or self.rows.address,
            "address": self.rows.address,
            "destination": self.rows.destination(),
            "counts": self.rows.counts()._asdict(),
            "columns": list(COLUMNS),
            "states": list(STATES),
            "colormaps": COLORMAPS,
            "images": self._place_of_images,
            "session": self.session,
            "colorings": {
                fingerprint: {
                    "table": base64.b64encode(coloring.table.tobytes()).decode(),
                    "merged": coloring.merged,
                    "settings": runs[fingerprint].shaping | {"s3": None} if fingerprint in runs else None,
                }
                for fingerprint, coloring in {"": UNKNOWN, **self.overlays.colorings}.items()
            },
        }

    @property
    def is_ready(self) -> bool:
        """Whether the names are read."""
        return self._snapshot is not None

    def snapshot(self, *, fresh: bool = False) -> Snapshot:
        """Return the rows in memory, which are read at the first call, and again if they shall be fresh."""
        with self._loading:
            if self._snapshot is None or fresh:
                generation = 0 if self._snapshot is None else self._snapshot.generation + 1
                self._snapshot = Snapshot(self.rows, generation)
                self._groups = None
            return self._snapshot

    def groups(self) -> Groups:
        """Return the failed maps by reason."""
        with self._loading:
            if self._groups is None:
                self._groups = Groups.of(self.rows)
            return self._groups

    def order(self, request: Request, *, fresh: bool = False) -> dict[str, Any]:
        """Make an order; return its id, the number of its rows, and that of all rows, for JSON."""
        snapshot = self.snapshot(fresh=fresh)
        order = snapshot.order(request, lambda group: self.groups().numbers(group))
        return {"order": order.id, "total": len(order), "all": len(snapshot), "ready": True}

    def first_order(self) -> dict[str, Any]:
        """Return the order by name before all names are read; only its first rows can be read."""
        total = self.rows.counts().total
        return {"order": FIRST, "total": total, "all": total, "ready": False}

    def known(self, order: str) -> Order:
        """Return an order by its id; raise UnknownOrderError if it is not kept anymore."""
        found = None if self._snapshot is None else self._snapshot.known_order(order)
        if found is None:
            raise UnknownOrderError("this order is not kept anymore: ask for it again")
        return found

    def page(self, order: str, start: int, count: int) -> list[dict[str, Any] | None]:
        """Return the rows of an order from a place on, for JSON."""
        if order == FIRST:
            with self.rows.opened() as manifest:
                return manifest.first(start, min(count, max(0, FIRST_ROWS - start)))
        numbers = self.known(order).page(start, count)
        with self.rows.opened() as manifest:
            return manifest.page(numbers)

    def find(self, order: str, name: str) -> dict[str, Any]:
        """Return the row of a map, and where it is in an order; None if it is not there."""
        with self.rows.opened() as manifest:
            number = manifest.number_of(name)
            (row,) = manifest.page([number]) if number is not None else [None]
        is_ordered = number is not None and order != FIRST
        return {"row": row, "place": self.known(order).place_of(number) if is_ordered and number is not None else None}

    def row(self, number: int) -> dict[str, Any] | None:
        """Return a row by its number; None if it is gone."""
        with self.rows.opened() as manifest:
            return manifest.page([number])[0]

    def layers(self, name: str) -> list[dict[str, Any]]:
        """Return the rows in the same folder as a map, if they are few: layers of one image."""
        folder = name.rpartition("/")[0]
        if not folder:
            return []
        with self.rows.opened() as manifest:
            found = manifest.names_below(folder, _MOST_LAYERS + 1)
            if not 1 < len(found) <= _MOST_LAYERS:
                return []
            return [row for row in manifest.page([number for number, _ in found]) if row is not None]

    def marks(self, order: str) -> list[float | str | None]:
        """Return what an order is sorted by at each percent of its rows."""
        return [] if order == FIRST else self.snapshot().marks(self.known(order))

    def histogram(self, column: str, order: str, bins: int) -> dict[str, Any]:
        """Return the histogram of a column for all rows and for those of an order."""
        chosen = None if order in {"", FIRST} else self.known(order)
        return self.snapshot().histogram(column, chosen, bins)

    def scale(self) -> dict[str, float | None]:
        """Return the smallest and largest value that any map's colors span."""
        snapshot = self.snapshot()
        low, high = snapshot.extremes("range_low"), snapshot.extremes("range_high")
        return {"low": None if low is None else low[0], "high": None if high is None else high[1]}


class UnknownOrderError(SettingsError):
    """An order is not kept anymore."""
