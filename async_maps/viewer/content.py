"""What the viewer shows: rows, orders, overlays and images of a manifest. Everything here blocks; thread-safe."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from threading import Lock
from typing import TYPE_CHECKING, Any

from async_maps.errors import SettingsError
from async_maps.viewer.compare import DISAGREEMENT, MEASURES, PAIRED, Comparison
from async_maps.viewer.groups import Groups
from async_maps.viewer.images import Images
from async_maps.viewer.orders import COLUMNS, STATES, Filter, Request, Snapshot
from async_maps.viewer.side import Side

if TYPE_CHECKING:
    from collections.abc import Sequence
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
        side: the rows and the overlays.
        images: the images; None if no place was given.
        comparison: a second manifest; None if there is none.
        session: a text that no other server has; browsers keep images under it.

    Raises:
        AsyncMapsError: a manifest, a plan or the images cannot be read.
    """

    def __init__(
        self,
        manifest: str | PathLike[str],
        images: str | None = None,
        compare: str | PathLike[str] | None = None,
        s3: S3Settings | None = None,
    ) -> None:
        with ExitStack() as stack:
            self.side = Side(manifest, s3)
            stack.callback(self.side.close)
            self._place_of_images = images
            self.images = None if images is None else Images(images, s3)
            if self.images is not None:
                stack.callback(self.images.close)
            self.comparison = None if compare is None else Comparison(self.side, Side(compare, s3))
            if self.comparison is not None:
                stack.callback(self.comparison.close)
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
        return self.side.describe() | {
            "columns": [*COLUMNS, *(MEASURES if self.comparison else ())],
            "states": list(STATES),
            "colormaps": COLORMAPS,
            "images": self._place_of_images,
            "session": self.session,
            "other": None if self.comparison is None else self.comparison.side.describe(),
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
                snapshot = Snapshot(self.side.rows, generation, hashed=self.comparison is not None)
                if self.comparison is not None:
                    self.comparison.join(snapshot)
                self._snapshot, self._groups = snapshot, None
            return self._snapshot

    def groups(self) -> Groups:
        """Return the failed maps by reason."""
        failed = self.side.rows.counts().failed
        with self._loading:
            if self._groups is None or self._groups.failed != failed:
                self._groups = Groups.of(self.side.rows)
            return self._groups

    def request(self, sort: str, filters: Sequence[str], search: str) -> Request:
        """Return what an order is asked for by; raise SettingsError if a filter is unknown."""
        others = ((), ()) if self.comparison is None else (MEASURES, (PAIRED,))
        return Request(sort, tuple(Filter.parse(text, *others) for text in filters), search)

    def order(self, request: Request, *, fresh: bool = False) -> dict[str, Any]:
        """Make an order; return its id, the number of its rows, and that of all rows, for JSON."""
        snapshot = self.snapshot(fresh=fresh)
        used = {request.sort.removeprefix("-"), *(condition.name for condition in request.filters)}
        if self.comparison is not None and DISAGREEMENT in used:
            self.comparison.measure()
        order = snapshot.order(request, lambda group: self.groups().numbers(group))
        return {"order": order.id, "total": len(order), "all": len(snapshot), "ready": True}

    def first_order(self) -> dict[str, Any]:
        """Return the order by name before all names are read; only its first rows can be read."""
        total = self.side.rows.counts().total
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
            with self.side.rows.opened() as manifest:
                return manifest.first(start, min(count, max(0, FIRST_ROWS - start)))
        return self._rows(self.known(order).page(start, count))

    def find(self, order: str, name: str, row: int = 0) -> dict[str, Any]:
        """Return the row of a map, and where it is in an order; None if it is not there.

        Maps that were refused at their source may have the name of another one: ``row`` is the number of the one that
        is wanted; 0 if it is not known.
        """
        with self.side.rows.opened() as manifest:
            (known,) = manifest.page([row])
            number = row if known is not None and known["name"] == name else manifest.number_of(name)
        if number is None:
            return {"row": None, "place": None}
        place = None if order == FIRST else self.known(order).place_of(number)
        return {"row": self._rows([number])[0], "place": place}

    def layers(self, name: str) -> list[dict[str, Any]]:
        """Return the rows in the same folder as a map, if they are few: layers of one image."""
        folder = name.rpartition("/")[0]
        if not folder:
            return []
        with self.side.rows.opened() as manifest:
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
        """Return the smallest and largest value that any map's colors span, also in the second manifest."""
        snapshots = [self.snapshot()]
        if self.comparison is not None and self.comparison.other is not None:
            snapshots.append(self.comparison.other)
        lows = [found[0] for one in snapshots if (found := one.extremes("range_low")) is not None]
        highs = [found[1] for one in snapshots if (found := one.extremes("range_high")) is not None]
        return {"low": min(lows, default=None), "high": max(highs, default=None)}

    def _rows(self, numbers: list[int]) -> list[dict[str, Any] | None]:
        with self.side.rows.opened() as manifest:
            rows = manifest.page(numbers)
        if self.comparison is None or self._snapshot is None:
            return rows
        return self.comparison.beside(rows)


class UnknownOrderError(SettingsError):
    """An order is not kept anymore."""
