"""Compares a listing with the rows of the parts of a plan, both in the order of keys. Blocks.

What is as expected is only counted. The rest goes to the comparison on disk, which pairs it in any order: so the order
of a listing, and the size of its gaps, decide only how much that is.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from async_maps.filesystems.objects import ObjectInfo
    from async_maps.verify.comparison import Comparison, Expected

_BATCH_ROWS = 1000


class Span(NamedTuple):
    """The keys of a part: its smallest and its largest locator, in the order of UTF-8.

    Attributes:
        first: the smallest locator.
        last: the largest one.
        part: the number of the part.
        rows: the number of its rows.
    """

    first: bytes
    last: bytes
    part: int
    rows: int


def most_rows(spans: Iterable[Span]) -> int:
    """Return the largest number of rows of parts whose spans have a key in common."""
    ends = sorted((key, is_last, span.rows) for span in spans for is_last, key in enumerate((span.first, span.last)))
    rows = most = 0
    for _, is_last, count in ends:
        rows += -count if is_last else count
        most = max(most, rows)
    return most


class Merge:
    """Compares a listing with the rows of parts.

    The rows of a part are in memory while the listing is between its smallest and its largest key. So the memory is
    that of :func:`most_rows`, and for each part its span.

    Args:
        spans: the keys of the parts.
        rows_of: reads the rows of a part, in any order.
        comparison: gets what is not as expected.

    Attributes:
        matched: the number of objects that are as expected.
        most_held: the largest number of parts that were in memory at the same time.
    """

    def __init__(
        self, spans: Iterable[Span], rows_of: Callable[[int], Iterable[Expected]], comparison: Comparison
    ) -> None:
        self.matched = self.most_held = 0
        self._spans = sorted(spans, reverse=True)
        self._rows_of = rows_of
        self._comparison = comparison
        self._at = b""
        self._held: list[tuple[bytes, int, list[Expected]]] = []
        """A heap of the next key of each part in memory, its number and its rows, the next one last."""

    def take(self, found: Sequence[ObjectInfo]) -> None:
        """Compare the next objects of the listing."""
        expected: list[Expected] = []
        others: list[ObjectInfo] = []
        for object_ in found:
            key = utf8(object_.locator)
            if key <= self._at:
                # The listing has no order, or names an object again.
                others.append(object_)
                continue
            self._at = key
            for row in self._before(key):
                expected.append(row)
                if len(expected) >= _BATCH_ROWS:
                    self._comparison.expect(expected)
                    expected.clear()
            rows = [*self._at_key(key)]
            if rows and all(_is_right(row, object_) for row in rows):
                self.matched += 1
            else:
                expected += rows
                others.append(object_)
        self._comparison.expect(expected)
        self._comparison.find(others)

    def end(self) -> None:
        """Add the rows after the end of the listing."""
        while self._held:
            *_, rows = self._held.pop()
            self._comparison.expect(rows)
        while self._spans:
            self._comparison.expect(self._rows_of(self._spans.pop().part))

    def _before(self, key: bytes) -> Iterator[Expected]:
        """Yield the rows before a key; read the parts whose span begins before it."""
        while self._spans and self._spans[-1].first <= key:
            span = self._spans.pop()
            yield from self._held_before(span.first)
            rows = self._rows_of(span.part)
            if span.last < key:
                yield from rows
                continue
            self._hold(span.part, sorted(rows, key=_key, reverse=True))
            self.most_held = max(self.most_held, len(self._held))
        yield from self._held_before(key)

    def _held_before(self, key: bytes) -> Iterator[Expected]:
        while self._held and self._held[0][0] < key:
            yield self._next()

    def _at_key(self, key: bytes) -> Iterator[Expected]:
        while self._held and self._held[0][0] == key:
            yield self._next()

    def _next(self) -> Expected:
        _, part, rows = heappop(self._held)
        row = rows.pop()
        self._hold(part, rows)
        return row

    def _hold(self, part: int, rows: list[Expected]) -> None:
        if rows:
            heappush(self._held, (_key(rows[-1]), part, rows))


def utf8(locator: str) -> bytes:
    """Return what S3 sorts a locator by."""
    return locator.encode("utf-8", "surrogatepass")


def _key(row: Expected) -> bytes:
    return utf8(row.locator)


def _is_right(row: Expected, found: ObjectInfo) -> bool:
    has_etag = row.etag in {None, found.etag} or found.etag is None
    return row.broken is None and row.size in {None, found.size} and has_etag
