"""Orders of rows: sorted, filtered and searched in memory.

SQLite needs 15 s to skip 900,000 rows; here, a page at any offset takes milliseconds. Everything here blocks.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import partial
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

from async_maps.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from numpy.typing import NDArray

    from async_maps.viewer.rows import ViewedRows

    Mask: TypeAlias = NDArray[np.bool_]

COLUMNS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "mean": "mean",
    "range_low": "range_low",
    "range_high": "range_high",
    "high_share": "high_share",
    "entropy": "entropy",
    "center_x": "center_x",
    "center_y": "center_y",
    "invalid_pixels": "invalid_pixels",
    "width": "width",
    "height": "height",
    "bytes": "bytes",
    # Not unixepoch(): fractions of seconds need SQLite 3.42.
    "time": "(julianday(time) - 2440587.5) * 86400.0",
}
"""The columns to sort and filter by, each with its SQL. They are numbers; null for failed maps, except ``time``."""
STATES = {
    "done": "status = 'done'",
    "failed": "status = 'failed'",
    "transparent": "transparent",
    "faint": "faint",
    "constant": "constant",
    "invalid": "invalid_pixels > 0",
}
"""What a row can be, each with its SQL."""
_KEPT, _KEPT_RANKS = 8, 4
"""Orders, and places sorted by a column, that are kept: 4 MB for a million rows each."""
_SHORT_QUERY = 200
_BLOCK = 2**16
"""Values that are counted at a time: the temporary arrays of all of them would stay in the memory of the process."""

Extremes = tuple[float, float] | None


class Filter(NamedTuple):
    """A condition on a column, a state or a group of failures.

    Attributes:
        kind: what it is a condition on.
        name: the column, the state, or the number of the group.
        low: the smallest value of a column.
        high: the largest one.
    """

    kind: Literal["column", "state", "group"]
    name: str
    low: float = -np.inf
    high: float = np.inf

    @classmethod
    def parse(cls, text: str, columns: Collection[str] = (), states: Collection[str] = ()) -> Filter:
        """Parse ``mean:0.2..0.5``, ``mean:..0.5``, ``is:failed`` or ``group:3``; raise SettingsError for others.

        ``columns`` and ``states`` are allowed beside those of every manifest.
        """
        name, _, rest = text.partition(":")
        if name == "is" and (rest in STATES or rest in states):
            return cls("state", rest)
        if name == "group" and rest.isdecimal() and rest.isascii():
            return cls("group", rest)
        low, dots, high = rest.partition("..")
        if not dots or (name not in COLUMNS and name not in columns):
            raise SettingsError(f"unknown filter {text[:80]!r}; expected COLUMN:LOW..HIGH, is:STATE or group:NUMBER")
        try:
            return cls("column", name, float(low or "-inf"), float(high or "inf"))
        except ValueError:
            raise SettingsError(f"filter {text[:80]!r}: the bounds must be numbers") from None


class Request(NamedTuple):
    """An order that is wanted: a column with a minus for descending, or ``name``; filters; and a part of names."""

    sort: str = "name"
    filters: tuple[Filter, ...] = ()
    search: str = ""


class Order:
    """Rows in an order.

    Attributes:
        id: a text that names it.
        request: what it was made for.
        places: the places of its rows in the snapshot, (n,) uint32.
        rows: of each place, the number of the row, int64.
        version: other numbers if the rows or the values that decide the order are others.
    """

    def __init__(
        self, request: Request, places: NDArray[np.uint32], rows: NDArray[np.int64], version: tuple[int, int]
    ) -> None:
        text = repr((request, version))
        self.id = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        self.request = request
        self.places = places
        self._rows = rows

    def __len__(self) -> int:
        return len(self.places)

    def page(self, start: int, count: int) -> list[int]:
        """Return the numbers of rows."""
        found: list[int] = self._rows[self.places[start : start + count]].tolist()
        return found

    def place_of(self, row: int) -> int | None:
        """Return where a row is in this order; None if it is not."""
        found = np.flatnonzero(self._rows[self.places] == row)
        return int(found[0]) if len(found) else None


class Snapshot:
    """The rows of a manifest at one moment; columns are read when they are needed.

    Attributes:
        generation: the number of the snapshot.
        numbers: the row numbers in the order of the names, (n,) int64.
    """

    def __init__(self, rows: ViewedRows, generation: int = 0, *, hashed: bool = False) -> None:
        self.generation = generation
        self._rows = rows
        self._loading = RLock()
        self._columns: dict[str, NDArray[np.floating[Any]]] = {}
        self._makers: dict[str, Callable[[], NDArray[np.float64]]] = {
            name: partial(self._load, expression) for name, expression in COLUMNS.items()
        }
        self._states: dict[str, Mask] = {}
        self._puts = 0
        self._ranks: OrderedDict[str, NDArray[np.uint32]] = OrderedDict()
        self._orders: OrderedDict[str, Order] = OrderedDict()
        self._names = _Names(rows, hashed=hashed)
        self.numbers = self._names.numbers
        self._by_number = np.argsort(self.numbers, kind="stable").astype(np.uint32)
        self._sorted_numbers = self.numbers[self._by_number]

    def __len__(self) -> int:
        return len(self.numbers)

    def define(self, name: str, make: Callable[[], NDArray[np.float64]]) -> None:
        """Add a column that is computed when it is needed, (n,) float64 in the order of the names."""
        self._makers[name] = make

    def put(self, name: str, values: NDArray[np.floating[Any]]) -> None:
        """Replace the values of a column that was defined; orders that are made later have other ids."""
        with self._loading:
            if name in self._columns and np.array_equal(self._columns[name], values, equal_nan=True):
                return
            self._columns[name] = values
            self._ranks.pop(name, None)
            self._puts += 1

    def put_state(self, name: str, mask: Mask) -> None:
        """Add a state, (n,) bool in the order of the names."""
        with self._loading:
            self._states[name] = mask

    def column(self, name: str) -> NDArray[np.floating[Any]]:
        """Return a column in the order of the names, (n,); NaN for null.

        It is float32 if that holds all values exactly, else float64.
        """
        with self._loading:
            if name not in self._columns:
                if name not in self._makers:
                    raise SettingsError(f"unknown column {name[:80]!r}; known: {', '.join(self._makers)}")
                self._columns[name] = _small(self._makers[name]())
            return self._columns[name]

    def extremes(self, name: str) -> Extremes:
        """Return the smallest and largest value of a column; None if it has none."""
        values = self.column(name)
        # These pass over NaN, without a copy of the others.
        low, high = (float(reduce(values, initial=np.nan)) for reduce in (np.fmin.reduce, np.fmax.reduce))
        return None if np.isnan(low) else (low, high)

    def state(self, name: str) -> Mask:
        """Return which rows are in a state, in the order of the names, (n,) bool."""
        with self._loading:
            if name not in self._states:
                self._states[name] = self._load(STATES[name]) == 1
            return self._states[name]

    def order(self, request: Request, group: Callable[[str], NDArray[np.int64]]) -> Order:
        """Return the rows that a request is for; the last 8 orders are kept.

        Args:
            request: the request.
            group: returns the numbers of the rows in a group of failures.

        Raises:
            SettingsError: there is no such column.
        """
        version = self.generation, self._puts
        places = self._sorted(request.sort)
        keep = self._kept(request, group)
        if keep is not None:
            places = places[keep[places]]
        order = Order(request, places, self.numbers, version)
        with self._loading:
            self._orders[order.id] = order
            self._orders.move_to_end(order.id)
            while len(self._orders) > _KEPT:
                self._orders.popitem(last=False)
        return order

    def known_order(self, id_: str) -> Order | None:
        """Return an order that was made before; None if it is not kept anymore."""
        with self._loading:
            return self._orders.get(id_)

    def marks(self, order: Order, count: int = 101) -> list[float | str | None]:
        """Return the values that an order is sorted by, at equal distances from its first to its last row."""
        if not len(order):
            return []
        at = order.places[np.linspace(0, len(order) - 1, count).astype(int)]
        column = order.request.sort.removeprefix("-")
        if column == "name":
            with self._rows.opened() as manifest:
                rows = manifest.page(self.numbers[at].tolist())
            return [None if row is None else str(row["name"]) for row in rows]
        return [None if np.isnan(value) else float(value) for value in self.column(column)[at]]

    def histogram(self, column: str, order: Order | None, bins: int) -> dict[str, Any]:
        """Return how often values of a column are in equal bins: those of all rows, and those of an order."""
        extremes = self.extremes(column)
        if extremes is None:
            return {"low": None, "high": None, "all": [], "selected": []}
        low, high = extremes
        values = self.column(column)
        every = _histogram(values, low, high, bins)
        is_part = order is not None and len(order) < len(self)
        chosen = _histogram(values[order.places], low, high, bins) if order is not None and is_part else every
        return {"low": low, "high": high, "all": every, "selected": chosen}

    def places_of(self, numbers: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the places of rows by their numbers, (n,); -1 for rows that are not in the snapshot."""
        known = self._sorted_numbers
        if not len(known):
            return np.full(len(numbers), -1, np.intp)
        at = np.minimum(np.searchsorted(known, numbers), len(known) - 1)
        found: NDArray[np.intp] = np.where(known[at] == numbers, self._by_number[at].astype(np.intp), -1)
        return found

    @property
    def hashes(self) -> NDArray[np.int64]:
        """A hash of each name, in the order of the names, (n,) int64; empty unless ``hashed``."""
        return self._names.hashes

    def _load(self, expression: str) -> NDArray[np.float64]:
        values = np.empty(len(self))
        values[self._by_number] = self._rows.column(expression, self._sorted_numbers)
        return values

    def _rank(self, name: str) -> NDArray[np.uint32]:
        """Return the places in ascending order of a column; nulls come last."""
        values = self.column(name)
        with self._loading:
            if name not in self._ranks:
                self._ranks[name] = np.argsort(values, kind="stable").astype(np.uint32)
                if len(self._ranks) > _KEPT_RANKS:
                    self._ranks.popitem(last=False)
            self._ranks.move_to_end(name)
            return self._ranks[name]

    def _sorted(self, sort: str) -> NDArray[np.uint32]:
        name, is_descending = sort.removeprefix("-"), sort.startswith("-")
        if name == "name":
            places = np.arange(len(self), dtype=np.uint32)
            return places[::-1] if is_descending else places
        rank = self._rank(name)
        if not is_descending:
            return rank
        valid = len(self) - int(np.isnan(self.column(name)).sum())
        return np.concatenate([rank[:valid][::-1], rank[valid:]])

    def _kept(self, request: Request, group: Callable[[str], NDArray[np.int64]]) -> Mask | None:
        keep: Mask | None = None
        for condition in request.filters:
            if condition.kind == "state":
                mask = self.state(condition.name)
            elif condition.kind == "group":
                mask = np.zeros(len(self), bool)
                places = self.places_of(group(condition.name))
                mask[places[places >= 0]] = True
            else:
                values = self.column(condition.name)
                mask = (values >= condition.low) & (values <= condition.high)
            keep = mask if keep is None else keep & mask
        if request.search:
            found = self._names.containing(request.search[:_SHORT_QUERY])
            keep = found if keep is None else keep & found
        return keep


class _Names:
    """The names of all rows in small letters, in the order of the names, in one array of bytes."""

    def __init__(self, rows: ViewedRows, *, hashed: bool) -> None:
        numbers, texts, hashes = [], [b""], [np.empty(0, np.int64)]
        for found in rows.names():
            if len(found.numbers):
                numbers.append(found.numbers)
                texts.append(_lowered(found.text))
                if hashed:
                    hashes.append(np.fromiter(map(hash, found.text.split("\0")), np.int64, len(found.numbers)))
        self.hashes = np.concatenate(hashes)
        self.numbers = np.concatenate(numbers) if numbers else np.empty(0, np.int64)
        self._bytes = np.frombuffer(b"\0".join([*texts, b""]), np.uint8)
        self._starts = np.flatnonzero(self._bytes == 0).astype(np.uint32)
        self._counts: NDArray[np.int64] | None = None

    def containing(self, text: str) -> Mask:
        """Return which names contain a text, (n,) bool; capital letters do not matter."""
        wanted = np.frombuffer(_lowered(text), np.uint8)
        mask = np.zeros(len(self.numbers), bool)
        last = len(self._bytes) - len(wanted)
        if not len(wanted) or last < 0 or not wanted.all():
            return mask
        if self._counts is None:
            # Of a part: it only chooses the byte that is looked for first.
            self._counts = np.bincount(self._bytes[: 2**20], minlength=256)
        rarest = int(np.argmin(self._counts[wanted]))
        hits = np.flatnonzero(self._bytes[rarest : last + rarest + 1] == wanted[rarest])
        for offset, byte in enumerate(wanted):
            hits = hits[self._bytes[hits + offset] == byte]
        mask[np.searchsorted(self._starts, hits, side="right") - 1] = True
        return mask


def _lowered(text: str) -> bytes:
    return text.lower().encode("utf-8", "replace")


def _small(values: NDArray[np.float64]) -> NDArray[np.floating[Any]]:
    """Return values as float32 if that holds each exactly, as those of float32 maps and whole numbers."""
    with np.errstate(over="ignore"):
        small = values.astype(np.float32)
    return small if ((small == values) | np.isnan(values)).all() else values


def _histogram(values: NDArray[np.floating[Any]], low: float, high: float, bins: int) -> list[int]:
    """Return how many values are in each of equal bins; NaN is in none."""
    counts = np.zeros(bins, np.int64)
    for start in range(0, len(values), _BLOCK):
        block = values[start : start + _BLOCK]
        counts += _counts(block[~np.isnan(block)], low, high, bins)
    found: list[int] = counts.tolist()
    return found


def _counts(values: NDArray[np.floating[Any]], low: float, high: float, bins: int) -> NDArray[np.int64]:
    if not np.isfinite(high - low):
        values, low, high = values / 2, low / 2, high / 2
    shares = (values - low) / (high - low) if high > low else np.zeros(len(values))
    places = np.minimum((shares * bins).astype(np.intp), bins - 1)
    return np.bincount(places, minlength=bins)
