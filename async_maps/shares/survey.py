"""Surveys one part of a plan: reads its maps for the range of the whole set."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from async_maps.plans.ranges import keep_sketch
from async_maps.report import Report, counted
from async_maps.shares.part import PartDone, PartFailed, files_of_part
from async_maps.sources.batches import list_maps
from async_maps.survey import survey

if TYPE_CHECKING:
    from async_maps.plans.document import Plan
    from async_maps.plans.place import Place
    from async_maps.settings import Settings


class PartSurveys:
    """Surveys parts."""

    def __init__(self, place: Place, plan: Plan, settings: Settings) -> None:
        self._place = place
        self._plan = plan
        self._settings = settings

    async def run(self, part: int) -> PartDone | PartFailed:
        """Read the maps of a part, and store the sketch of their values.

        Returns:
            What was done. A part whose disk or store could not be read has no sketch. Maps that are damaged have no
            values; they fail when the part is run.

        Raises:
            PlanError: its list is missing, or this version cannot read it.
            StoreError: a store cannot be used.
        """
        report = Report()
        files = await files_of_part(self._place, self._plan, part)
        listing = list_maps(files, settings=self._settings, destination=self._plan.destination)
        async with aclosing(listing):
            found = await survey(listing, self._settings, report)
        if count := found.readable_later:
            return PartFailed(part, f"{counted(count, 'map')} could not be read now; survey the part again")
        return PartDone(part, await keep_sketch(self._place, self._plan, part, found.sketch))
