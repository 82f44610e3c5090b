"""Whole sources: their value range, the selection of maps, the manifest and the report."""

from __future__ import annotations

import logging
import os
from contextlib import aclosing
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from async_maps.concurrency.tasks import OrderlyTask
from async_maps.errors import TooManyFailuresError, naming_shortages
from async_maps.manifest.claims import distinct
from async_maps.manifest.recorder import open_recorder
from async_maps.manifest.sampler import sampled
from async_maps.outcomes import Failure
from async_maps.pipeline.earlier import knowing_earlier
from async_maps.pipeline.first_keys import FirstKeys
from async_maps.plans.ranges import given_range
from async_maps.progress import reporting
from async_maps.report import Report, counting_selected
from async_maps.report.invisible import InvisibleMaps
from async_maps.sources.batches import list_maps, numbered
from async_maps.sources.given import GivenFiles
from async_maps.survey import range_of_all, refuse_one_shot, survey

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from async_maps.manifest.manifest import RepairMode, Select
    from async_maps.manifest.prune import Selection
    from async_maps.manifest.recorder import Recorder
    from async_maps.outcomes import Outcome
    from async_maps.pipeline.intake import Intake
    from async_maps.pipeline.lifecycle import Lifecycle
    from async_maps.progress import OnProgress
    from async_maps.render.ranges import ValueRange
    from async_maps.settings import Settings
    from async_maps.sources.batches import AnySource, Entry
    from async_maps.sources.coverage import Coverage
    from async_maps.stages.meters import Statistics

_logger = logging.getLogger("async_maps")


class Runs:
    """Puts every map of a source."""

    def __init__(
        self, settings: Settings, lifecycle: Lifecycle, intake: Intake, statistics: Callable[[], Statistics]
    ) -> None:
        self._settings = settings
        self._lifecycle = lifecycle
        self._intake = intake
        self._statistics = statistics

    async def stream(self, source: AnySource, ordered: bool, limit: int | None) -> AsyncGenerator[list[Outcome], None]:
        """Yield lists of all outcomes that are ready."""
        value_range = await self._range_for(source, None, "changed", Report())
        if value_range is None:
            return
        listing = distinct(self._list(source, value_range, None, Report(limit=limit)))
        async with aclosing(self._intake.outcomes(listing, value_range, ordered)) as batches:
            async for outcomes in batches:
                yield outcomes

    async def run(self, selection: Selection, on_progress: OnProgress | None) -> Report:
        """Put the selected maps, and return a report, which an error has too."""
        _, stages = self._lifecycle.opened()
        plain = self._settings.model_dump(mode="json")
        manifest = None if selection.manifest is None else os.fspath(selection.manifest)
        destination = stages.store.destination
        report = Report(destination=destination, manifest=manifest, limit=selection.limit, settings=plain)
        invisible = InvisibleMaps()

        async def main() -> None:
            async with reporting(
                on_progress,
                report,
                selection.source,
                self._statistics,
                settings=self._settings,
                reads_all=not self._intake.value_range.is_known,
            ) as total:
                with naming_shortages():
                    await self._run(selection, report, invisible.count, total)

        try:
            await OrderlyTask(main).result()
        except BaseException as error:
            report.drained, report.statistics = self._lifecycle.is_draining, self._statistics()
            report.end(error)
            raise
        finally:
            if warning := invisible.warning(self._settings, report.uploaded):
                report.warnings.append(warning)
                _logger.log(_level(selection), "%s", warning)
        report.end()
        return report

    async def repair(self, selection: Selection, on_outcomes: Callable[[list[Outcome]], None]) -> Report:
        """Put the maps of rows that are to be repaired."""
        report = Report()
        await OrderlyTask(partial(self._run, selection, report, on_outcomes)).result()
        return report

    async def _run(
        self,
        selection: Selection,
        report: Report,
        on_outcomes: Callable[[list[Outcome]], None] | None = None,
        total: Callable[[], int | None] = lambda: None,
    ) -> None:
        started = monotonic()
        source, mode = selection.source, selection.mode
        limit = self._settings.max_failures
        _, stages = self._lifecycle.opened()
        async with (
            open_recorder(
                selection.manifest, stages.store.identity, self._settings, getattr(stages.store, "promises", None)
            ) as recorder,
            sampled(recorder, selection, report, self._statistics, total),
            knowing_earlier(recorder, stages, self._settings),
        ):
            value_range = await self._range_for(source, recorder, mode, report)
            report.survey_s = monotonic() - started if report.surveyed else 0.0
            if value_range is None:
                report.drained, report.statistics = True, self._statistics()
                return
            coverage = None if recorder is None else recorder.follow(selection, report)
            listing = self._list(source, value_range, recorder, report, coverage)
            if recorder is None:
                listing = distinct(listing)
            else:
                # The manifest of a part is a temporary file.
                lister = "this part of the plan" if isinstance(source, GivenFiles) else ""
                first_keys = FirstKeys(
                    recorder, stages.store, self._settings, report, level=_level(selection), lister=lister
                )
                listing = recorder.select_maps(listing, mode, report, first_keys.check)
                if self._intake.claims is not None:
                    await recorder.load_claims(self._intake.claims, mode)
            listing = counting_selected(listing, report)
            async with aclosing(self._intake.outcomes(listing, value_range)) as batches:
                async for outcomes in batches:
                    report.count(outcomes)
                    report.tick()
                    if _logger.isEnabledFor(logging.DEBUG):
                        for outcome in outcomes:
                            if isinstance(outcome, Failure):
                                _logger.debug("failed: %s", outcome)
                    if on_outcomes is not None:
                        on_outcomes(outcomes)
                    if recorder is not None:
                        await recorder.note(outcomes)
                    if limit is not None and report.failed > limit:
                        raise TooManyFailuresError(f"{report.failed:,} maps failed, more than max_failures = {limit:,}")
            if recorder is not None and not self._lifecycle.is_draining:
                await recorder.complete()
            report.drained = self._lifecycle.is_draining
        report.statistics = self._statistics()

    async def _range_for(
        self, source: AnySource, recorder: Recorder | None, mode: Select | RepairMode, report: Report
    ) -> ValueRange | None:
        """Return the value range, for which all maps may have to be read; None if a drain stopped that."""
        value_range, sketch = self._intake.value_range, None
        if not value_range.is_known:
            value_range = await given_range(self._settings, recorder, mode)
        if not value_range.is_known:
            refuse_one_shot(source)
            listing = self._list(source, None, recorder)
            found = await self._lifecycle.until_drained(partial(survey, listing, self._settings, report))
            if found is None:
                return None
            sketch = found.sketch
            value_range = await range_of_all(sketch, value_range)
            if report.unsurveyed or not sketch.count:
                # Perhaps because of an outage: do not keep the incomplete range for later runs.
                sketch = None
        if recorder is not None:
            await recorder.keep(self._settings, value_range, source, sketch)
        if value_range.kind == "fixed":
            report.range_low, report.range_high = value_range.low, value_range.high
        return value_range

    def _list(
        self,
        source: AnySource,
        value_range: ValueRange | None,
        recorder: Recorder | None,
        report: Report | None = None,
        coverage: Coverage | None = None,
    ) -> AsyncGenerator[list[Entry], None]:
        known = recorder.known if recorder is not None else None
        report = report or Report()
        listing = list_maps(
            source,
            value_range,
            settings=self._settings,
            known=known,
            limit=report.limit,
            pass_over=report.pass_over,
            destination=self._lifecycle.opened()[1].store.destination,
            questions=self._intake.questions,
            coverage=coverage,
            # A survey reads them in this process; the lanes of a run read them themselves.
            reads=value_range is None or self._lifecycle.opened()[1].reads_here,
        )
        return numbered(listing) if self._settings.key_template.needs_index else listing


def _level(selection: Selection) -> int:
    """Return the level of warnings: a share of a plan tells of those of its parts together."""
    return logging.DEBUG if isinstance(selection.source, GivenFiles) else logging.WARNING
