"""From callers to the stages and back: maps get a key and a place, and outcomes reach who waits for them."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from anyio import BrokenResourceError, ClosedResourceError, to_thread

from async_maps.concurrency.tasks import OrderlyTask, raise_if_cancelled
from async_maps.errors import MapFailedError, PipelineClosedError, SettingsError, SourceError, name_shortage
from async_maps.outcomes import Failure, Receipt
from async_maps.sources.batches import take_array, taker, with_key
from async_maps.sources.layouts import Questions
from async_maps.stages.flow import Flow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator
    from typing import Any

    from async_maps.errors import AsyncMapsError
    from async_maps.manifest.claims import Claims
    from async_maps.outcomes import Outcome
    from async_maps.pipeline.lifecycle import Lifecycle
    from async_maps.pipeline.tally import Settle, Tally
    from async_maps.render.ranges import ValueRange
    from async_maps.settings import Settings
    from async_maps.sources.batches import Entry
    from async_maps.stages.graph import Stages
    from async_maps.stages.reservation import Reservation

_logger = logging.getLogger("async_maps")


class Intake:
    """Passes maps to the stages.

    Attributes:
        value_range: the value range of single maps; of runs and streams too if it is known.
        claims: which map has which overlay; None if no two names can have the same overlay.
        questions: what was asked about the layout of arrays.
        feeders: the tasks that read sources.
        feeds: the number of sources that were begun.
    """

    def __init__(self, settings: Settings, lifecycle: Lifecycle, tally: Tally) -> None:
        self.value_range: ValueRange = settings.value_range
        self.claims: Claims | None = None
        self.questions = Questions()
        self.feeders: set[asyncio.Task[None]] = set()
        self.feeds = 0
        self._settings = settings
        self._template = settings.key_template
        self._lifecycle = lifecycle
        self._tally = tally
        self._warned = False

    # Single maps ----------------------------------------------------------------------------------------------------

    def check_single(self) -> Stages:
        """Return the stages if single maps can be put from this task; raise an error if they cannot."""
        if not self.value_range.is_known or self._template.needs_index:
            what = "an {index} in the key" if self._template.needs_index else f"range {self.value_range}"
            raise SettingsError(f"{what} needs a whole source: use stream() or run() instead of put()")
        serving, stages = self._lifecycle.opened()
        if serving.get_loop() is not asyncio.get_running_loop():
            raise PipelineClosedError("the pipeline is open in another event loop; put maps there")
        self.refuse_if_leaving()
        return stages

    def refuse_if_leaving(self) -> None:
        """Raise an error if the pipeline is being left."""
        if self._lifecycle.is_leaving:
            raise PipelineClosedError("the pipeline is being closed and accepts no more maps")

    async def put(self, name: str, activation_map: Any, reservation: Reservation | None = None) -> Receipt:
        """Pass one map to the stages and wait for its receipt."""
        waiting: asyncio.Future[Outcome | AsyncMapsError] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome | AsyncMapsError) -> None:
            if not waiting.done():
                waiting.set_result(outcome)

        self._lifecycle.callers[settle] = name
        try:
            entry = await take_array(name, activation_map, taker(self._settings, self.value_range, self.questions))
            (entry,) = await self._claimed([entry])
            await self._submit(entry, settle, self.value_range, reservation)
            # The array's lease is released when it is colorized: do not keep the array in memory longer.
            del entry, activation_map
            outcome = await waiting
        finally:
            self._lifecycle.callers.pop(settle, None)
        if isinstance(outcome, Receipt):
            return outcome
        reason = self._lifecycle.abandoned_because
        if reason and isinstance(outcome, PipelineClosedError):
            raise PipelineClosedError(
                f"map {name} was abandoned, and may or may not be stored: {reason}; put it again", may_pass=True
            )
        raise MapFailedError(outcome) if isinstance(outcome, Failure) else outcome

    # Whole listings -------------------------------------------------------------------------------------------------

    async def outcomes(
        self, listing: AsyncGenerator[list[Entry], None], value_range: ValueRange, ordered: bool = False
    ) -> AsyncGenerator[list[Outcome], None]:
        """Pass a listing to the stages, and yield lists of all outcomes that are ready."""
        _, stages = self._lifecycle.opened()
        flow = Flow(stages.window, ordered=ordered)
        self._lifecycle.callers[flow.end] = ""
        feeder = OrderlyTask(partial(self._feed, listing, flow, value_range))
        self._lifecycle.unfinished.add(feeder.task)
        self.feeders.add(feeder.task)
        self.feeds += 1
        feeder.task.add_done_callback(self.feeders.discard)
        try:
            while outcomes := await flow.collect():
                yield outcomes
        finally:
            self._lifecycle.callers.pop(flow.end, None)
            self._lifecycle.unfinished.discard(feeder.task)
            await feeder.cancel()

    async def _feed(self, listing: AsyncGenerator[list[Entry], None], flow: Flow, value_range: ValueRange) -> None:
        until_drained = self._lifecycle.until_drained
        try:
            async with aclosing(listing):
                # A batch is empty if all of its maps were skipped.
                while (batch := await until_drained(partial(anext, listing, None))) is not None:
                    for entry in await self._claimed(batch):
                        if self._lifecycle.is_draining:
                            return
                        # A scope for each map would take as long as all else here.
                        number = flow.admit_nowait() or await until_drained(flow.admit)
                        if number is None:
                            return
                        try:
                            await self._submit(entry, partial(flow.settle, number=number), value_range)
                        except BaseException:
                            flow.withdraw()
                            raise
        except asyncio.CancelledError as error:
            raise_if_cancelled(error)
            flow.close(SourceError("the source raised CancelledError: one of its tasks or scopes was cancelled"))
        except Exception as error:  # noqa: BLE001  # raised in the caller, whose iterable may raise anything
            flow.close(name_shortage(error))
        finally:
            flow.close()

    # One map to the stages, and its outcome back --------------------------------------------------------------------

    async def _claimed(self, entries: list[Entry]) -> list[Entry]:
        """Turn maps whose overlay would overwrite another map's into failures."""
        _, stages = self._lifecycle.opened()
        store = stages.store
        entries = [with_key(entry, store.prefix, self._template, store.locator) for entry in entries]
        return entries if self.claims is None else await to_thread.run_sync(self.claims.check, entries)

    async def _submit(
        self, entry: Entry, settle: Settle, value_range: ValueRange, reservation: Reservation | None = None
    ) -> None:
        """Pass one map to the stages, when there is room or with its reservation; ``settle`` gets its outcome."""
        serving, stages = self._lifecycle.opened()
        if isinstance(entry, Failure):
            if reservation is not None:
                self._tally.withdraw(reservation)
            self._settle(settle, value_range.is_relative, entry)
            return
        self._tally.submit(settle, reservation)
        try:
            await stages.submit(entry, partial(self._settle, settle, value_range.is_relative), value_range, reservation)
        except (BrokenResourceError, ClosedResourceError) as error:
            self._tally.submitted.discard(settle)
            reason = self._lifecycle.abandoned_because
            if isinstance(error, BrokenResourceError) and not reason:
                # The stages have ended; wait for the reason.
                await asyncio.wait({serving})
                raise self._lifecycle.ended() from None
            reason = reason or "the pipeline was closed before there was room for it"
            raise PipelineClosedError(
                f"map {entry.name} is not stored: {reason}; put it again", may_pass=True
            ) from None
        except BaseException:
            # If the cancellation came when the map had already got its place, the map goes on and is settled later.
            self._tally.submitted.discard(settle)
            raise

    def _settle(
        self,
        settle: Settle,
        relative: bool,  # bound by position
        outcome: Outcome | AsyncMapsError,
    ) -> None:
        self._tally.submitted.discard(settle)
        if self._lifecycle.abandoned_because:
            return
        self._tally.count(outcome)
        if relative and not self._warned and isinstance(outcome, Receipt) and outcome.statistics.is_flat:
            self._warned = True
            _logger.warning(
                "map %s is constant, or almost all of its values are equal: with range %s its overlay has one or "
                "two colors (columns constant, range_low, range_high of the manifest; other maps are not reported)",
                outcome.name, self._settings.range,
            )  # fmt: skip
        settle(outcome)
