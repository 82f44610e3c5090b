"""Surveys one part of a plan: reads its maps for the range of the whole set."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from async_maps.concurrency.tasks import OrderlyTask, raise_if_cancelled
from async_maps.plans.ranges import is_surveyed, keep_sketch
from async_maps.report import Report, counted
from async_maps.shares.part import PartDone, PartFailed, PartStopped, files_of_part
from async_maps.sources.batches import list_maps
from async_maps.survey import survey

if TYPE_CHECKING:
    from async_maps.plans.document import Plan
    from async_maps.plans.place import Place
    from async_maps.settings import Settings
    from async_maps.survey import Survey


class PartSurveys:
    """Surveys parts.

    Attributes:
        running: the report of each part that is read, so far.
    """

    def __init__(self, place: Place, plan: Plan, settings: Settings) -> None:
        self._place = place
        self._plan = plan
        self._settings = settings
        self._tasks: set[OrderlyTask[Survey]] = set()
        self.is_open = True
        self.running: dict[int, Report] = {}

    def drain(self) -> None:
        """Stop reading; the parts that are read have no sketch."""
        self.is_open = False
        for task in self._tasks:
            task.request_cancel()

    async def run(self, part: int) -> PartDone | PartStopped | PartFailed:
        """Read the maps of a part, and store the sketch of their values.

        Its report is in ``running`` until the caller removes it.

        Returns:
            What was done. A part whose disk or store could not be read has no sketch. Maps that are damaged have no
            values; they fail when the part is run.

        Raises:
            PlanError: its list is missing, or this version cannot read it.
            StoreError: a store cannot be used.
        """
        if not self.is_open:
            return PartStopped(part)
        if await is_surveyed(self._place, self._plan, part):
            return PartDone(part, is_ours=False)
        report = self.running[part] = Report()
        reading = OrderlyTask(partial(self._read, part, report))
        self._tasks.add(reading)
        try:
            found = await reading.result()
        except asyncio.CancelledError as error:
            raise_if_cancelled(error)
            return PartStopped(part)
        finally:
            self._tasks.discard(reading)
        if count := found.readable_later:
            return PartFailed(part, f"{counted(count, 'map')} could not be read now")
        is_ours = await keep_sketch(self._place, self._plan, part, found.sketch)
        return PartDone(part, is_ours, surveyed=report.surveyed)

    async def _read(self, part: int, report: Report) -> Survey:
        files = await files_of_part(self._place, self._plan, part)
        listing = list_maps(files, settings=self._settings, destination=self._plan.destination, reads=True)
        async with aclosing(listing):
            return await survey(listing, self._settings, report)
