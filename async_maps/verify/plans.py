"""Compares the overlays of a plan with a listing of its destination. Runs on the event loop, and in threads."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from itertools import count as counting
from itertools import islice
from typing import TYPE_CHECKING

from anyio import to_thread

from async_maps.errors import SettingsError
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.endpoints import Identity
from async_maps.filesystems.locators import file_path
from async_maps.manifest.destination import Relocation, place_of_overlays
from async_maps.manifest.schema import COLUMNS
from async_maps.plans.manifests import LOCATOR, NAME
from async_maps.plans.rows import PlanRows
from async_maps.verify.check import Check
from async_maps.verify.comparison import REPAIRABLE, Expected
from async_maps.verify.meanwhile import SLACK_S, Window, settle
from async_maps.verify.merge import Merge, Span, most_rows, utf8
from async_maps.verify.sent import sent_patterns

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from os import PathLike
    from typing import Any

    from async_maps.plans.manifests import Row

_MOST_ROWS = 200_000
"""The maximum number of rows in memory. If more parts have a key in common, all rows go to the comparison on disk."""
_BATCH_ROWS = 1000
_SHOWN = 5
_FIELDS = [
    COLUMNS.index(name) for name in ("locator", "name", "bytes", "etag", "crc32", "width", "height", "time", "error")
]


class PlanCheck(Check):
    """Compares the objects of a plan with a listing, which is read once.

    A listing of S3 has the order of keys: only the parts are in memory whose smallest and largest key enclose the key
    at hand. Files are compared on disk, as those of a manifest, and so are all objects with ``deep``, which are read
    afterwards.
    """

    _merge: Merge | None = None

    async def look(
        self, place: str | PathLike[str], *, deep: bool, since: str = "", destination: str | None = None
    ) -> None:
        """Compare the listing, then the bytes of files, or with ``deep`` of all objects."""
        self._verification.place, self._verification.doing = str(place), "reading the plan"
        self._rows = await to_thread.run_sync(partial(PlanRows, str(place), objects=self._objects))
        await super().look(place, deep=deep, since=since, destination=destination)

    async def _manifest(self, path: str | PathLike[str], destination: str | None) -> None:
        verification, rows = self._verification, self._rows
        folder = Identity(rows.plan.destination, "").folder
        if folder.startswith("memory:"):
            raise SettingsError(f"the overlays of {path} were in the memory of a process, and cannot be verified")
        if destination is not None:
            now = self._objects.identity(place_of_overlays(destination))
            self._relocation = Relocation(now, folder, Identity.parse(now).folder)
            folder = self._relocation.new
        verification._may_be_empty = not rows.plan.parts
        verification.folders = [folder]
        spans = await to_thread.run_sync(self._spans)
        if verification.deep or not is_remote(folder) or most_rows(spans) > _MOST_ROWS:
            await self._expect(self._all_rows())
            await self._list(folder)
        else:
            await self._compare_in_order(folder, Merge(spans, self._rows_of, self._comparison))
        within = folder if file_path(folder) is not None else None
        await self._look_for(partial(self._is_asked_for, folder, counting()), within)
        await self._compare()

    def _spans(self) -> list[Span]:
        spans = []
        for footer in self._rows.footers():
            self._verification.failed += footer.failures
            if footer.last:
                first, last = map(self._moved, (footer.first, footer.last))
                spans.append(Span(utf8(first), utf8(last), footer.part, footer.rows))
        return spans

    async def _compare_in_order(self, folder: str, merge: Merge) -> None:
        self._verification.doing = f"listing {folder}"
        self._merge = merge
        listing = self._objects.below(folder)

        def take() -> int:
            batch = list(islice(listing, _BATCH_ROWS))
            merge.take(batch)
            return len(batch)

        with closing(listing):
            while count := await to_thread.run_sync(take):
                self._verification.listed += count
                self._verification.locators = merge.matched
        await to_thread.run_sync(merge.end)

    def _count(self) -> None:
        super()._count()
        if self._merge is not None:
            self._verification.locators += self._merge.matched
            self._verification.right += self._merge.matched

    def _settle(self, path: str | PathLike[str], began_at: float) -> None:
        verification, comparison = self._verification, self._comparison
        folder = verification.folders[0]
        offset_s = self._objects.clock_offset_s(folder)
        if comparison.foreign("") or comparison.counts():
            comparison.expect_sent(sent_patterns(self._rows, folder))
        if comparison.foreign(""):
            self._forget_earlier()
        settled = settle(comparison, Window.of(began_at, offset_s, None))
        _, verification.of_failed, verification.shared = settled
        verification.unsettled = comparison.unsettled()
        if replaced := comparison.replaced(SLACK_S + offset_s):
            objects = "1 object was" if replaced == 1 else f"{replaced:,} objects were"
            verification.advice.append(
                f"{objects} replaced after the plan recorded them; does another run write there?"
            )
        if broken := {difference.name for difference in islice(comparison.differences(*REPAIRABLE), _BATCH_ROWS)}:
            verification.advice.append(self._how_to_repair(broken))

    def _forget_earlier(self) -> None:
        """Leave out the overlays of the plans before this one: they are not foreign."""
        at = self._rows.plan
        with closing(self._rows.earlier()) as plans:
            for rows in plans:
                at = rows.plan
                with closing(rows.claims()) as claims:
                    while batch := [self._moved(locator) for locator, _ in islice(claims, _BATCH_ROWS)]:
                        self._comparison.forget_found(batch)
        if at.since is not None:
            self._verification.advice.append(
                f"{at.since} does not exist anymore, or is another plan: its overlays are called foreign"
            )

    def _how_to_repair(self, broken: set[str]) -> str:
        """Return how to store overlays again: the names of their maps lead to the parts."""
        parts: list[int] = []
        with closing(self._rows.parts()) as found:
            for part, rows in found:
                if any(row[NAME] in broken for row in rows):
                    parts.append(part)
                if len(parts) == _SHOWN:
                    break
        shown = ", ".join(f"{part:07}" for part in parts)
        place = f"{self._rows.path}/{self._rows.plan.id}/done"
        return (
            f"to store broken overlays again, delete the manifests of their parts in {place}, and run the plan again. "
            f"The first of these parts: {shown}"
        )

    def _rows_of(self, part: int) -> Iterable[Expected]:
        return self._expected(self._rows.part(part))

    def _all_rows(self) -> Generator[Expected, None, None]:
        with closing(self._rows.parts()) as parts:
            for _, rows in parts:
                yield from self._expected(rows)

    def _expected(self, rows: Iterator[Row]) -> Iterator[Expected]:
        for row in rows:
            if row[LOCATOR] is not None:
                values: tuple[Any, ...] = tuple(row[index] for index in _FIELDS)
                locator, name, size, etag, crc32, width, height, time, error = values
                yield Expected(
                    self._moved(locator), name, size, etag, crc32, width, height, written_at=time, broken=error
                )

    def _moved(self, locator: str) -> str:
        return locator if self._relocation is None else self._relocation(locator)
