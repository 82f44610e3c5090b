"""The rows of a plan, in place of those of a manifest: of each map the newest outcome. Blocks.

The manifests of the parts are read one after the other, a few of them ahead. So the memory is that of a few manifests
in Parquet, of a batch of rows, and of the rows that retries of one part have changed.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING

from async_maps.filesystems.endpoints import Identity
from async_maps.filesystems.objects import Objects
from async_maps.manifest.destination import place_of_overlays
from async_maps.manifest.manifest import Manifest
from async_maps.manifest.metadata import KeptRun
from async_maps.manifest.schema import COLUMNS
from async_maps.plans.ahead import read_ahead
from async_maps.plans.commits import FOOTER_BYTES, footer_at, manifests_at, plan_at, read_manifests, refuse_incomplete
from async_maps.plans.manifests import GONE, LOCATOR, NAME, SOURCE, STATUS, manifest_name, read_rows
from async_maps.plans.place import DOCUMENT, PlanObjects, is_plan
from async_maps.plans.ranges import range_at
from async_maps.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
    from os import PathLike
    from typing import Any, Self

    from async_maps.plans.manifests import Footer, Row
    from async_maps.settings import S3Settings


def open_rows(place: str | PathLike[str], s3: S3Settings | None = None) -> Manifest | PlanRows:
    """Open a manifest for reading, or the rows of a plan, which have the same methods.

    Raises:
        ManifestError: the manifest cannot be read.
        PlanError: there is no plan, this version cannot read it, or parts of it are not committed.
        StoreError: the store of the plan cannot be used.
    """
    return PlanRows(os.fspath(place), s3) if is_plan(place) else Manifest(place, read_only=True)


class PlanRows:
    """The rows of a plan whose parts are all committed, read like those of a manifest.

    Attributes:
        path: the address of the plan, for messages.
        plan: the plan.

    Raises:
        PlanError: there is no plan, this version cannot read it, or parts of it are not committed. All methods raise
            it if a manifest of a part was deleted or is damaged.
        StoreError: all methods raise it if the store of the plan cannot be used.
    """

    def __init__(
        self, address: str, s3: S3Settings | None = None, *, objects: Objects | None = None, whole: bool = True
    ) -> None:
        """Open a plan.

        Args:
            address: its address.
            s3: the time limits and attempts of requests.
            objects: reads the plan, with its own settings; the caller closes it.
            whole: whether all parts must be committed; else the rows of others are missing.
        """
        with ExitStack() as stack:
            self._objects = objects or stack.enter_context(Objects(s3))
            self._place = PlanObjects(place_of_overlays(address), self._objects)
            self.path = self._place.address
            self.plan = plan_at(self._place)
            self._sizes = manifests_at(self._place, self.plan)
            if whole:
                refuse_incomplete(self.path, self.plan, self._sizes)
            self._opened = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._opened.close()

    def rows(self, *, failed: bool = False) -> Generator[Row, None, None]:
        """Yield the rows of done maps, or of all with ``failed``, as :meth:`Manifest.rows`, by part and name."""
        return self._select(("done", "failed") if failed else ("done",))

    def failures(self) -> Generator[Row, None, None]:
        """Yield the rows of failed maps, like :meth:`rows`; only the parts that have some are read."""
        with closing(self.footers()) as footers:
            parts = [footer.part for footer in footers if footer.failures]
        yield from self._select(("failed",), parts)

    def claims(self) -> Generator[tuple[str, str], None, None]:
        """Yield the locator and the name of each done map."""
        with closing(self.rows()) as rows:
            yield from ((str(row[LOCATOR]), str(row[NAME])) for row in rows)

    def done(self) -> dict[str, int]:
        """Return the number of done maps by the fingerprint of their settings; reads all rows."""
        settings = COLUMNS.index("settings")
        return Counter(str(row[settings]) for row in self.rows())

    def runs(self) -> list[KeptRun]:
        """Return the settings of the plan, as those of one run."""
        shaping = self._shaping()
        fingerprint = Settings().shaped_as(shaping).fingerprint()
        return [KeptRun(self.plan.source, fingerprint, shaping)]

    def _shaping(self) -> dict[str, Any]:
        found = range_at(self._place, self.plan)
        return self.plan.shaping if found is None else self.plan.shaping | {"range": found}

    def destination(self) -> str:
        """Return the identity of the store of the overlays, as the environment has it."""
        return self._objects.identity(self.plan.destination)

    def has_any(self, locators: Collection[str]) -> bool:
        """Whether a row has one of a few locators; may read all rows."""
        start = Identity(self.plan.destination, "").folder
        wanted = {locator for locator in locators if locator.startswith(start)}
        with closing(self.rows(failed=True)) as rows:
            return bool(wanted) and any(row[LOCATOR] in wanted for row in rows)

    def lists_overlays(self) -> bool:
        """Whether a row has a locator."""
        with closing(self.rows()) as rows:
            return next(rows, None) is not None

    def sent(self) -> Iterator[tuple[str, str, str | None, bool]]:
        """Yield the failed maps, whose overlay an earlier attempt may have stored, as :meth:`Manifest.sent`."""
        settings = COLUMNS.index("settings")
        return ((str(row[NAME]), str(row[settings]), None, True) for row in self.failures())

    def earlier(self) -> Generator[PlanRows, None, None]:
        """Yield the plans before this one, whose finished files it has left out, each open until the next.

        It ends at one that does not exist anymore, or where a later plan is now. Of a plan that is not complete, only
        the committed parts have rows.
        """
        address, seen = self.plan.since, {self.path}
        while address is not None and address not in seen and PlanObjects(address, self._objects).has(DOCUMENT):
            seen.add(address)
            with PlanRows(address, objects=self._objects, whole=False) as rows:
                yield rows
                address = rows.plan.since

    def footers(self) -> Generator[Footer, None, None]:
        """Yield the footers of the newest manifests, in the order of the parts."""
        reading = read_ahead(sorted(self._sizes), self._footer, lambda _: FOOTER_BYTES)
        with closing(reading) as found:
            yield from (footer for _, footer in found)

    def part(self, part: int) -> Iterator[Row]:
        """Return the rows of a part, with the file at the end of each."""
        return merged(self._manifests(part), partial(self._where, part))

    def parts(self, parts: Iterable[int] | None = None) -> Generator[tuple[int, Iterator[Row]], None, None]:
        """Yield the number of each of these parts, or of all, and its rows, each with the file at its end, once."""
        chosen, sizes = sorted(self._sizes if parts is None else parts), self._sizes
        with closing(read_ahead(chosen, self._manifests, lambda part: sum(sizes[part]))) as found:
            for part, manifests in found:
                yield part, merged(manifests, partial(self._where, part))

    def _select(self, statuses: Collection[str], parts: Iterable[int] | None = None) -> Generator[Row, None, None]:
        with closing(self.parts(parts)) as found:
            for _, rows in found:
                yield from (row[:-1] for row in rows if row[STATUS] in statuses)

    def _where(self, part: int, generation: int) -> str:
        return self._place.locator(manifest_name(self.plan.id, part, generation))

    def _footer(self, part: int) -> Footer:
        sizes = self._sizes[part]
        return footer_at(self._place, manifest_name(self.plan.id, part, len(sizes) - 1), sizes[-1])

    def _manifests(self, part: int) -> list[bytes]:
        return read_manifests(self._place, self.plan, part, len(self._sizes[part]))


def merged(manifests: Sequence[bytes], where: Callable[[int], str]) -> Iterator[Row]:
    """Yield the newest row of each map of a part, with the file at its end.

    Args:
        manifests: the manifests of the part, from generation 0 on.
        where: returns the address of a generation, for messages.
    """
    newer: dict[tuple[object, object], Row] = {}
    for generation in range(len(manifests) - 1, 0, -1):
        for row in read_rows(manifests[generation], where(generation)):
            newer.setdefault((row[NAME], row[SOURCE]), row)
    for row in read_rows(manifests[0], where(0)):
        newest = newer.pop((row[NAME], row[SOURCE]), row)
        if newest[STATUS] != GONE:
            yield newest
    yield from (row for row in newer.values() if row[STATUS] != GONE)
