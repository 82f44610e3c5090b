"""Compares the locators of a manifest or a table with listings of their folders, and with the objects.

Runs on the event loop, and in threads. Memory is bounded for any number of objects, because both lists are on disk.
"""

from __future__ import annotations

import re
from contextlib import closing, suppress
from datetime import datetime
from functools import partial
from itertools import count as counting
from itertools import islice
from math import floor
from time import time
from typing import TYPE_CHECKING

from anyio import to_thread

from async_maps.errors import ObjectError, SettingsError, SourceError
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.filesystems.endpoints import Identity
from async_maps.filesystems.locators import file_path
from async_maps.manifest.destination import Relocation, place_of_overlays, relocated_by_environment
from async_maps.manifest.lock import holder_of
from async_maps.manifest.manifest import Manifest
from async_maps.tables import is_table
from async_maps.verify.comparison import Difference, Expected
from async_maps.verify.meanwhile import SLACK_S, Window, settle
from async_maps.verify.reading import Reading
from async_maps.verify.rows import destination_in, open_rows, rows_in
from async_maps.verify.sent import sent_patterns
from async_maps.verify.tables import locators_in
from async_maps.verify.verification import MAX_LISTED_DIFFERENCES

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence
    from os import PathLike

_BATCH_ROWS = 1000
_BATCH_REQUESTS = 50
_ASKED = 100
_LOCATORS = "s3://bucket/key, gs://bucket/key, the URL of an object in Azure, or file:///path"
_PLAIN = re.compile(r"[A-Za-z0-9._/:-]*")


class Check(Reading):
    """Compares the expected objects with the existing ones; fills the comparison and the verification."""

    _relocation: Relocation | None = None
    is_locked_by_us = False
    """Whether the manifest is open for writing here, so no run writes it."""

    async def look(
        self, place: str | PathLike[str], *, deep: bool, since: str = "", destination: str | None = None
    ) -> None:
        """Compare the listings, then the bytes of files, or with ``deep`` of all objects, stored since ``since``."""
        began_at = time()
        self._verification.deep = deep
        await (self._table(str(place)) if is_table(str(place)) else self._manifest(place, destination))
        await (self.read(since) if deep else self.read_files(since))
        if not is_table(str(place)):
            await to_thread.run_sync(self._settle, place, began_at)

    async def _manifest(self, path: str | PathLike[str], destination: str | None) -> None:
        verification = self._verification
        verification.place, verification.doing = str(path), "reading the manifest"
        identity, verification.failed = await to_thread.run_sync(destination_in, path)
        folder = identity.folder
        if folder.startswith("memory:"):
            raise SettingsError(f"the overlays of {path} were in the memory of a process, and cannot be verified")
        self._relocation = await to_thread.run_sync(self._relocated, path, destination)
        if self._relocation is not None:
            folder = self._relocation.new
        await self._expect(rows_in(path, self._relocation))
        verification.folders = [folder]
        await self._list(folder)
        within = folder if folder.startswith("file://") else None
        await self._look_for(partial(self._is_asked_for, folder, counting()), within)
        await self._compare()

    async def _table(self, path: str) -> None:
        verification = self._verification
        verification.place, verification.doing = path, "reading the table"
        await self._expect(locators_in(path, self._settings.s3))
        if not verification.locators:
            raise SettingsError(
                f'{path} has no locator; expected a column "locator", or cells such as Kolena\'s {{"locator": ...}}'
            )
        unlisted: list[str] = []
        for folder, count in await to_thread.run_sync(self._comparison.folders):
            listed = False
            # Objects are looked up one by one if there are few among millions, or if the folder may not be listed.
            with suppress(ObjectError):
                listed = is_remote(folder) and await self._list(folder, requests=count)
            (verification.folders if listed else unlisted).append(folder)
        await self._look_for(lambda locator: locator.startswith(tuple(unlisted)))
        await self._compare()

    async def finish(self) -> None:
        """Count the differences, and end the progress."""
        await to_thread.run_sync(self._count)
        self._verification.doing = ""

    async def _expect(self, rows: Generator[Expected, None, None]) -> None:
        def take() -> tuple[int, bool]:
            batch = list(islice(rows, _BATCH_ROWS))
            unknown = [row for row in batch if not _is_known(row.locator)]
            self._comparison.note(
                Difference("unknown", row.locator, row.name, _LOCATORS, "another locator") for row in unknown
            )
            known = set(batch).difference(unknown) if unknown else batch
            return self._comparison.expect(known) + len(unknown), bool(batch)

        with closing(rows):
            more = True
            while more:
                count, more = await to_thread.run_sync(take)
                self._verification.locators += count

    async def _list(self, folder: str, requests: int | None = None) -> bool:
        """List a folder; return False if that needs more than this number of requests."""
        self._verification.doing = f"listing {folder}"
        listing = self._objects.below(folder)

        def take() -> int:
            batch = list(islice(listing, _BATCH_ROWS))
            self._comparison.find(batch)
            return len(batch)

        with closing(listing):
            while count := await to_thread.run_sync(take):
                self._verification.listed += count
                if requests is not None:
                    requests -= 1
                    if requests < 0:
                        return False
        return True

    async def _look_for(self, wanted: Callable[[str], bool], within: str | None = None) -> None:
        """Look up, one by one, the wanted objects that were not listed."""
        self._verification.doing = "looking up objects that were not listed"

        def look(locators: Sequence[str]) -> None:
            for locator in locators:
                try:
                    found = self._objects.find(locator, within)
                except ObjectError as error:
                    self._comparison.note([Difference("unreadable", locator, "", "an object", str(error))])
                else:
                    self._comparison.find([] if found is None else [found])

        after = ""
        while locators := await to_thread.run_sync(self._comparison.unseen, after):
            after = locators[-1]
            await to_thread.run_sync(self._comparison.unlist, locators)
            asked = [locator for locator in locators if wanted(locator)]
            for start in range(0, len(asked), _BATCH_REQUESTS):
                await to_thread.run_sync(look, asked[start : start + _BATCH_REQUESTS])

    @staticmethod
    def _is_asked_for(folder: str, unlisted: Iterator[int], locator: str) -> bool:
        """Whether an object that a listing lacks is looked up: files, odd keys, and the first others.

        A server may list a key in another spelling. The listing counts when millions of plain keys are missing.
        """
        return (
            locator.startswith("file://")
            or not locator.startswith(folder)
            or _PLAIN.fullmatch(locator) is None
            or next(unlisted) < _ASKED
        )

    async def _compare(self) -> None:
        self._verification.doing = "comparing"
        await to_thread.run_sync(self._comparison.compare)
        await to_thread.run_sync(self._count)

    def _settle(self, path: str | PathLike[str], began_at: float) -> None:
        verification = self._verification
        # Before the rows are read again: a run that has ended has written them all.
        holder = None if self.is_locked_by_us else holder_of(path)
        offset_s = self._objects.clock_offset_s(verification.folders[0])
        run = None
        if self._comparison.foreign("") or self._comparison.counts():
            with open_rows(path, self._relocation) as opened:
                # In this order: a map that is stored in between has a row then.
                self._comparison.expect_sent(sent_patterns(opened, verification.folders[0]))
                rows = ((row["locator"], row["name"], row["time"]) for row in opened.located())
                self._comparison.forget_changed(rows)
                run = opened.last_run()
        settled = settle(self._comparison, Window.of(began_at, offset_s, holder))
        verification.unrecorded, verification.of_failed, verification.shared = settled
        verification._newer_foreign = 0
        if run is not None:
            start = datetime.fromisoformat(run.started_at).timestamp() + offset_s
            # Stores may tell the times of objects in whole seconds.
            verification._newer_foreign = self._comparison.foreign_since(floor(start))
        verification.running = None if holder is None else holder.text
        verification.unsettled = self._comparison.unsettled()
        if holder is None and (replaced := self._comparison.replaced(SLACK_S + offset_s)):
            objects = "1 object was" if replaced == 1 else f"{replaced:,} objects were"
            verification.advice.append(
                f"{objects} replaced after the manifest recorded them. If another run writes there, give each "
                "manifest a prefix of its own"
            )

    def _relocated(self, path: str | PathLike[str], destination: str | None) -> Relocation | None:
        with Manifest(path, read_only=True) as opened:
            if destination is None:
                return relocated_by_environment(opened, self._objects, self._settings)
            was, now = (
                Identity.parse(opened.destination() or ""),
                self._objects.identity(place_of_overlays(destination)),
            )
            return Relocation(now, was.folder, Identity.parse(now).folder)

    def _count(self) -> None:
        self._verification.differences = self._comparison.counts()
        self._verification.locators = self._comparison.locators()
        self._verification.right = self._comparison.right()
        self._verification.first = list(islice(self._comparison.differences(), MAX_LISTED_DIFFERENCES))


def _is_known(locator: str) -> bool:
    if not is_remote(locator):
        return file_path(locator) is not None
    try:
        return parse_address(locator).key != ""
    except SourceError:
        return False
