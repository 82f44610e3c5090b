"""The pipeline, the interface to the stages: open it once, use it in any number of tasks, close it.

This module turns a source into maps for the stages and returns the outcomes to the callers: it lists the source, reads
it for the value range if necessary, selects the maps to do, and waits for room. The processing itself is in
:mod:`async_maps.stages`. Everything here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from copy import copy
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from anyio import BrokenResourceError, CancelScope, ClosedResourceError, create_task_group, to_thread

from async_maps.concurrency.tasks import OrderlyTask, done_while_alive, first_error, raise_if_cancelled, see_error
from async_maps.errors import (
    AsyncMapsError,
    MapFailedError,
    PipelineClosedError,
    PipelineFullError,
    SettingsError,
    SourceError,
    TooManyFailuresError,
    name_shortage,
    naming_shortages,
)
from async_maps.manifest.claims import Claims, distinct
from async_maps.manifest.prune import Selection
from async_maps.manifest.recorder import open_recorder
from async_maps.manifest.sampler import sampled
from async_maps.outcomes import Failure, Outcome, Receipt
from async_maps.progress import reporting
from async_maps.report import Report, counting_selected
from async_maps.report.invisible import InvisibleMaps
from async_maps.settings import Settings, given_or_default
from async_maps.sources.arrays import size_of
from async_maps.sources.batches import check_limit, list_maps, numbered, take_array, taker, with_key
from async_maps.sources.layouts import Questions
from async_maps.stages.flow import Flow
from async_maps.stages.graph import Stages
from async_maps.stages.meters import Statistics, Throughput
from async_maps.stages.room import Room
from async_maps.stores import open_store
from async_maps.survey import known_range, range_of_all, refuse_one_shot, survey
from async_maps.workers.arena import Arena
from async_maps.workers.pool import started_workers
from async_maps.workers.worker import Recipe

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from os import PathLike
    from types import TracebackType
    from typing import Any

    from async_maps.manifest.manifest import RepairMode, Select
    from async_maps.manifest.prune import Prune
    from async_maps.manifest.recorder import Recorder
    from async_maps.progress import OnProgress
    from async_maps.render.ranges import ValueRange
    from async_maps.sources.batches import AnySource, Entry
    from async_maps.sources.coverage import Coverage
    from async_maps.stages.room import Reservation
    from async_maps.stores import Destination

T = TypeVar("T")

_logger = logging.getLogger("async_maps")

_CLOSED = "the pipeline was closed"
_CLOSING = "the pipeline is being closed and accepts no more maps"
_NAMED = 3
"""The number of abandoned maps that the log names."""

_WINDOW = 4096
"""The maximum number of one caller's maps that are in flight or have an outcome to collect (about 600 bytes each)."""


class Pipeline:
    """Colorizes, encodes and uploads activation maps inside its ``async with`` block.

    Any number of tasks may use it concurrently. The end of the block waits until all accepted maps are done, as long as
    maps are stored or bytes move to the store. After ``settings.drain_timeout_s`` without either, the other maps are
    abandoned. An exception or a cancellation abandons them immediately. In all cases no process, socket or memory is
    left. A call that waits for an abandoned map raises PipelineClosedError; its overlay may or may not be stored.

    Args:
        destination: ``s3://bucket/prefix``, ``file:///folder``, a plain path, ``memory://``, or a store
            (:class:`~async_maps.Store`), which the caller opens and closes.
        settings: the settings; the defaults if None.

    Raises:
        SettingsError: on entering, the destination is not valid.
        StoreError: on entering, the bucket does not exist or the store cannot be reached.
        WorkerError: on entering, a worker process cannot be started; later, one cannot be restarted.
    """

    def __init__(self, destination: Destination, *, settings: Settings | None = None) -> None:
        self.settings: Settings = given_or_default(settings)
        self._template = self.settings.key_template
        self._range = self.settings.value_range
        self._claims: Claims | None = None
        self._warned = False
        self._questions = Questions()
        self._destination = destination
        self._draining = self._leaving = self._is_bounded = False
        self._serving: OrderlyTask[None] | None = None
        self._stages: Stages | None = None
        self._end: AsyncMapsError = PipelineClosedError("the pipeline was closed before this map was uploaded")
        self._ended_early = False
        self._abandoned_because = ""
        self._callers: dict[Callable[[AsyncMapsError], None], str] = {}
        self._feeders: set[OrderlyTask[None]] = set()
        self._accepted: set[asyncio.Task[Receipt]] = set()
        self._until_drain: set[CancelScope] = set()
        self._reserved: set[Reservation] = set()
        self._rooms: set[asyncio.Future[None]] = set()
        self._throughput = Throughput()
        self._submitted: set[Callable[[Outcome | AsyncMapsError], None]] = set()
        self._uploaded = self._failed = self._abandoned = self._uploaded_bytes = self._shed = 0
        self._transparent = self._faint = 0

    # The stages -----------------------------------------------------------------------------------------------------

    async def _serve(self, opened: asyncio.Event) -> None:
        try:
            async with AsyncExitStack() as stack:
                store = await stack.enter_async_context(open_store(self._destination, self.settings))
                arena = stack.enter_context(Arena(self.settings.queue_size))
                settings, template = self.settings, self._template
                recipe = Recipe(
                    settings.table(), settings.png, settings.invalid, settings.max_pixels, settings.channels
                )
                self._range = await known_range(settings, None, "changed")
                if template.may_collide:
                    claims = Claims(lambda map_: store.locator(template.key(store.prefix, map_.name, map_.index)))
                    self._claims = stack.enter_context(claims)
                async with create_task_group() as opening:
                    opening.start_soon(store.check)
                    workers = await stack.enter_async_context(started_workers(recipe, settings.worker_count, arena))
                self._stages = Stages(settings, store, arena, recipe, workers)
                await self._stages.run(opened)
        except (Exception, BaseExceptionGroup) as caught:  # noqa: BLE001  # raised again, named
            error, self._ended_early = name_shortage(first_error(caught)), True
            if isinstance(error, AsyncMapsError):
                self._end = error
            else:
                self._end.__cause__ = error
            raise error from None
        finally:
            if self._stages is not None:
                self._stages.abandon()
            self._end_callers()

    # Opening and closing --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Pipeline:
        if self._serving is not None:
            raise PipelineClosedError("a pipeline can be entered only once; create a new Pipeline")
        opened = asyncio.Event()
        # In a separate task, so that the block may be left in another task than it was entered in (test fixtures and
        # frameworks do that), and so that the failure of a stage does not cancel the caller's task.
        self._serving = OrderlyTask(partial(self._serve, opened), "async-maps")
        opening = asyncio.create_task(opened.wait())
        try:
            await asyncio.wait({self._serving.task, opening}, return_when=asyncio.FIRST_COMPLETED)
        except BaseException:
            await self._serving.cancel()
            raise
        finally:
            opening.cancel()
        if self._serving.done():
            await self._serving.result()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._serving is not None and self._stages is not None  # noqa: S101, PT018  # entered
        self._stop_reading()
        self._leaving = True
        if kind is not None:
            self._abandon(f"the block of the pipeline was left by {kind.__name__}")
            await self._serving.cancel()
            return
        finishing, idle_s = asyncio.create_task(self._finish(self._stages)), self.settings.drain_timeout_s
        try:
            if await done_while_alive(finishing, self._stages.life, idle_s):
                finishing.result()
            else:
                self._abandon(f"{_CLOSED}, and for {idle_s:g} s nothing was stored and no byte moved", warn=True)
        except BaseException:
            self._abandon(f"{_CLOSED}, and that was cancelled")
            await self._serving.cancel()
            raise
        finally:
            finishing.cancel()
        if self._abandoned_because:
            await asyncio.wait({self._serving.task})
        else:
            await self._serving.result()

    async def _finish(self, stages: Stages) -> None:
        """Wait for the end of all accepted maps."""
        while feeding := {feeder.task for feeder in self._feeders if not feeder.done()} | self._accepted | self._rooms:
            await asyncio.wait(feeding)
        stages.close()
        if self._serving is not None:
            await asyncio.wait({self._serving.task})

    def _abandon(self, reason: str, *, warn: bool = False) -> None:
        """End the pipeline: tell all callers first, so that runs commit their receipts, then cancel the stages."""
        if self._stages is None or self._serving is None or self._serving.done():
            return
        self._abandoned = len(self._reserved) + len(self._submitted)
        self._ended_early, self._abandoned_because = True, reason
        self._end = PipelineClosedError(
            f"{reason}; maps without an outcome may or may not be stored: put them again", may_pass=True
        )
        if warn and self._abandoned:
            names = [name for name in self._callers.values() if name][:_NAMED]
            _logger.warning(
                "%s: %s abandoned%s; they may or may not be stored; put them again",
                reason, "1 map is" if self._abandoned == 1 else f"{self._abandoned:,} maps are",
                f", such as {', '.join(names)}" if names else "",
            )  # fmt: skip
        self._end_callers()
        self._stages.abandon()
        self._serving.request_cancel()

    def _end_callers(self) -> None:
        for end in list(self._callers):
            end(self._ended())

    @property
    def is_open(self) -> bool:
        """Whether the pipeline accepts maps."""
        return self._stages is not None and self._serving is not None and not self._serving.done()

    def drain(self) -> None:
        """Stop reading the sources of all runs and streams, and finish the maps that were read in a limited time.

        The maps that are not finished after ``settings.drain_timeout_s`` are abandoned. Their runs and streams raise
        PipelineClosedError, and the pipeline accepts no more maps.
        """
        if not self._is_bounded and self._serving is not None and self.is_open:
            self._is_bounded = True
            timeout_s = self.settings.drain_timeout_s
            reason = f"the pipeline was drained, and that took longer than drain_timeout_s = {timeout_s:g}"
            ending = self._serving.task.get_loop().call_later(timeout_s, partial(self._abandon, reason, warn=True))
            self._serving.task.add_done_callback(lambda _: ending.cancel())
        self._stop_reading()

    def _stop_reading(self) -> None:
        self._draining = True
        for waiting in self._until_drain:
            waiting.cancel()

    # For callers ----------------------------------------------------------------------------------------------------

    async def put(self, name: str, activation_map: Any) -> Receipt:
        """Colorize, encode and upload one map, and wait until the store has confirmed it.

        Maps of concurrent callers are processed in chunks; a single map is processed immediately. If there is no room,
        the call waits. No memory bound counts the array of a waiting call, so use :meth:`put_nowait` if the number of
        callers is unbounded. If the call is cancelled (``asyncio.timeout``), its map may or may not be uploaded. Do not
        change the array before the call returns.

        Args:
            name: the name of the map; the key of its overlay is ``{prefix}/{name}.png``.
            activation_map: (h, w) or (h, w, 1), or such a shape with leading axes of length 1. If the last of three
                axes has length 1, they are (h, w, 1). If ``settings.channels`` is not ``none``, also (c, h, w) or
                (h, w, c). A NumPy array, a ``torch.Tensor`` on any device, an object with
                ``__array__`` or ``__dlpack__``, or a list of exactly one of these. uint8, or any float with values in
                [0, 1]; if ``settings.range`` is not ``unit``, any real numbers.

        Returns:
            The receipt.

        Raises:
            MapFailedError: this map failed.
            SettingsError: ``settings.range`` is ``dataset``, or ``settings.key`` has an ``{index}``.
            StoreError: the store refuses all maps, or cannot be reached.
            PipelineClosedError: the pipeline is not open in this event loop, or was closed during the call.
        """
        self._check_single()
        putting = self._put(name, activation_map)
        # Only the coroutine must hold the array: it releases it as soon as possible.
        del activation_map
        return await putting

    def put_nowait(self, name: str, activation_map: Any) -> asyncio.Task[Receipt]:
        """Start to :meth:`put` a map if there is room now; for services that refuse requests rather than let them wait.

        The call itself takes the room. For any number of callers, at most ``chunk_maps`` maps and ``queue_bytes`` of
        arrays wait to be colorized, or one larger map alone. A tensor is converted later, in a thread.

        Args:
            name: as for :meth:`put`.
            activation_map: as for :meth:`put`. It takes the room of its ``nbytes``.

        Returns:
            A task; await it for the receipt or the errors of :meth:`put`. Cancelling it abandons only this map. If the
            task is not awaited and the map fails, asyncio logs the MapFailedError.

        Raises:
            PipelineFullError: there is no room, or other calls, such as a :meth:`stream`, wait for room;
                ``retry_after_s`` says when to try again.
            SettingsError: as for :meth:`put`.
            PipelineClosedError: the pipeline is not open in this event loop, or is being closed.
            RuntimeError: there is no event loop in this thread.
        """
        reservation = self._check_single().reserve_nowait(size_of(activation_map))
        if isinstance(reservation, str):
            raise self._full(reservation)
        self._reserved.add(reservation)
        task = asyncio.create_task(self._put(name, activation_map, reservation))

        def end(_: object) -> None:
            self._accepted.discard(task)
            # It is still there if the task was cancelled before it began.
            self._withdraw(reservation)
            if self._ended_early:
                # One error is reported for all maps together.
                see_error(task)

        self._accepted.add(task)
        task.add_done_callback(end)
        return task

    @asynccontextmanager
    async def reserve(self, nbytes: int, *, timeout_s: float | None = None) -> AsyncIterator[Room]:
        """Take room for a map before it is computed, so that an overloaded service refuses before its model runs.

        The room is taken when the block is entered, and what was not used is given back at its end. It is the room of
        :meth:`put_nowait`: together they hold at most ``chunk_maps`` maps and ``queue_bytes``, or one larger map.
        Closing the pipeline waits for the block, as for an accepted map.

        Args:
            nbytes: the total ``nbytes`` of the arrays that will be put into the room; usually of one.
            timeout_s: the longest wait for room in seconds; 0 does not wait, None waits as long as it takes.

        Yields:
            The room; call its ``put``.

        Raises:
            PipelineFullError: there was no room in ``timeout_s``; ``retry_after_s`` says when to try again.
            SettingsError: ``nbytes`` or ``timeout_s`` is negative, and as for :meth:`put`.
            PipelineClosedError: the pipeline is not open in this event loop, or is being closed.
        """
        stages = self._check_single()
        if nbytes < 0 or not (timeout_s is None or timeout_s >= 0):
            raise SettingsError(f"expected nbytes and timeout_s of 0 or more, found {nbytes!r} and {timeout_s!r}")
        try:
            async with asyncio.timeout(timeout_s):
                reservation = await stages.reserve(nbytes)
        except BrokenResourceError:
            raise self._ended() from None
        except TimeoutError:
            raise self._full(f"there was no room for {nbytes:,} bytes in {timeout_s:g} s") from None
        if self._leaving:  # since the wait began
            reservation.release()
            raise PipelineClosedError(_CLOSING)
        room, left = Room(reservation, self._put_reserved), asyncio.get_running_loop().create_future()
        self._rooms.add(left)
        try:
            yield room
        finally:
            room._close()
            left.set_result(None)
            self._rooms.discard(left)

    async def _put_reserved(self, name: str, activation_map: Any, reservation: Reservation) -> Receipt:
        self._reserved.add(reservation)
        putting = self._put(name, activation_map, reservation)
        del activation_map
        try:
            return await putting
        finally:
            self._withdraw(reservation)

    def _withdraw(self, reservation: Reservation) -> None:
        """Give back a reservation if its map was not submitted."""
        if reservation in self._reserved:
            self._reserved.remove(reservation)
            reservation.release()

    def _full(self, what: str) -> PipelineFullError:
        self._shed += 1
        wait_s = self._throughput.wait_s(len(self._reserved) + len(self._submitted))
        return PipelineFullError(f"the pipeline is full: {what}; try again in {wait_s:.1f} s", retry_after_s=wait_s)

    def _check_single(self) -> Stages:
        if not self._range.is_known or self._template.needs_index:
            what = "an {index} in the key" if self._template.needs_index else f"range {self._range}"
            raise SettingsError(f"{what} needs a whole source: use stream() or run() instead of put()")
        serving, stages = self._opened()
        if serving.task.get_loop() is not asyncio.get_running_loop():
            raise PipelineClosedError("the pipeline is open in another event loop; put maps there")
        if self._leaving:
            raise PipelineClosedError(_CLOSING)
        return stages

    async def _put(self, name: str, activation_map: Any, reservation: Reservation | None = None) -> Receipt:
        waiting: asyncio.Future[Outcome | AsyncMapsError] = asyncio.get_running_loop().create_future()

        def settle(outcome: Outcome | AsyncMapsError) -> None:
            if not waiting.done():
                waiting.set_result(outcome)

        self._callers[settle] = name
        try:
            entry = await take_array(name, activation_map, taker(self.settings, self._range, self._questions))
            (entry,) = await self._claimed([entry])
            await self._submit(entry, settle, self._range, reservation)
            # The array's lease is released when it is colorized: do not keep the array in memory longer.
            del entry, activation_map
            outcome = await waiting
        finally:
            self._callers.pop(settle, None)
        if isinstance(outcome, Receipt):
            return outcome
        if self._abandoned_because and isinstance(outcome, PipelineClosedError):
            raise PipelineClosedError(
                f"map {name} was abandoned, and may or may not be stored: {self._abandoned_because}; put it again",
                may_pass=True,
            )
        raise MapFailedError(outcome) if isinstance(outcome, Failure) else outcome

    async def stream(
        self, source: AnySource, *, ordered: bool = False, limit: int | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Put every map of a source, and yield the outcomes as they come.

        The second of two maps with one name fails; to replace an overlay on purpose, use :meth:`put`.
        The source is read no faster than the outcomes are taken. At most 4,096 maps are in flight or wait for their
        turn, at most 4,096 outcomes wait to be taken, and up to 256 maps are listed ahead. To stop early, close the
        generator with ``contextlib.aclosing``.

        Args:
            source: a file, folder or glob, or an iterable or async iterable of ``(name, array)``.
            ordered: yield in the order of the source, instead of as they come. An early outcome waits for its turn.
            limit: as for :meth:`run`.

        Yields:
            A receipt or a failure for each map.

        Raises:
            SourceError: the source does not exist, or contains no map.
            StoreError: the store refuses all maps, or cannot be reached.
            SettingsError: ``settings.range`` is ``dataset``, and the source can be read only once; or ``limit`` is not
                positive.
            PipelineClosedError: the pipeline was closed, and the maps without an outcome were abandoned.
        """
        check_limit(limit)
        self._opened()
        value_range = await self._range_for(source, None, "changed", Report())
        if value_range is None:
            return
        listing = distinct(self._list(source, value_range, None, Report(limit=limit)))
        async with aclosing(self._outcomes(listing, value_range, ordered)) as batches:
            async for outcomes in batches:
                for outcome in outcomes:
                    yield outcome

    async def run(  # noqa: PLR0913  # one argument a choice
        self,
        source: AnySource,
        *,
        manifest: str | PathLike[str] | None = None,
        select: Select = "changed",
        limit: int | None = None,
        prune: Prune | None = None,
        prune_all: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Report:
        """Put every map of a source, and return a report.

        With a manifest, a row of a failed map is removed when its file is read again and has other maps, and after a
        whole run also when its file is gone.

        Args:
            source: as for :meth:`stream`. If ``settings.range`` is ``dataset``, it is read twice, and the manifest
                keeps the range for later runs.
            manifest: the file that records each outcome; with it, maps that are done and unchanged are skipped.
            select: with a manifest, the maps to do: ``changed`` (not done, or changed since), ``failed`` (failed in an
                earlier run) or ``all``.
            limit: try only this number of maps, the first of the source; skipped maps count, too. A later run without
                it does the rest. If ``settings.range`` is ``dataset``, all maps are still read for the range, so that
                the colors are the same.
            prune: after a whole run, with a path as source, forget maps that are no longer in it: ``rows`` of the
                manifest, or ``objects``, the rows and their overlays in S3 or in a folder. If a file or folder cannot
                be read, nothing is pruned.
            prune_all: prune even if more than half of the overlays are of maps that are gone.
            on_progress: called with a :class:`~async_maps.Progress` five times a second and at the end, on the event
                loop, which it must not block. An error that it raises ends the run.

        Returns:
            The report. If the run ends with an AsyncMapsError, the report is that error's ``report``.

        Raises:
            SourceError: the source does not exist, or contains no map.
            StoreError: the store refuses all maps, or cannot be reached.
            ManifestError: the manifest cannot be used or written.
            SettingsError: ``settings.range`` is ``dataset``, and the source can be read only once; ``select`` or
                ``prune`` has another value; ``limit`` is not positive; or this run cannot prune. At the end of the
                run: more than half would be pruned.
            TooManyFailuresError: more maps failed than ``settings.max_failures``.
            PipelineClosedError: the pipeline was closed, and the maps in flight were abandoned. Run it again for the
                rest.
        """
        selection = Selection(source, manifest, select, limit, self.settings, prune, prune_all)
        selection.check(self._destination)
        _, stages = self._opened()
        plain = self.settings.model_dump(mode="json")
        report = Report(destination=stages.store.destination, limit=limit, settings=plain)
        invisible = InvisibleMaps()

        async def main() -> None:
            async with reporting(
                on_progress,
                report,
                source,
                self.statistics,
                settings=self.settings,
                reads_all=not self._range.is_known,
            ) as total:
                with naming_shortages():
                    await self._run(selection, report, invisible.count, total)

        try:
            await OrderlyTask(main).result()
        except BaseException as error:
            report.drained, report.statistics = self._draining, self.statistics()
            report.end(error)
            raise
        finally:
            if warning := invisible.warning(self.settings, report.uploaded):
                report.warnings.append(warning)
                _logger.warning("%s", warning)
        report.end()
        return report

    async def _repair(
        self, source: str, manifest: str | PathLike[str], mode: RepairMode, on_outcomes: Callable[[list[Outcome]], None]
    ) -> Report:
        report, selection = Report(), Selection(source, manifest, mode, None, self.settings)
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
        limit = self.settings.max_failures
        _, stages = self._opened()
        async with (
            open_recorder(selection.manifest, stages.store.identity, self.settings) as recorder,
            sampled(recorder, selection, report, self.statistics, total),
        ):
            value_range = await self._range_for(source, recorder, mode, report)
            report.survey_s = monotonic() - started if report.surveyed else 0.0
            if value_range is None:
                report.drained, report.statistics = True, self.statistics()
                return
            coverage = None if recorder is None else recorder.follow(selection, report)
            listing = self._list(source, value_range, recorder, report, coverage)
            if recorder is None:
                listing = distinct(listing)
            else:
                listing = recorder.select_maps(listing, mode, report)
                if self._claims is not None:
                    await recorder.load_claims(self._claims, mode)
            listing = counting_selected(listing, report)
            async with aclosing(self._outcomes(listing, value_range)) as batches:
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
            if recorder is not None and not self._draining:
                await recorder.complete()
            report.drained = self._draining
        report.statistics = self.statistics()

    def statistics(self) -> Statistics:
        """Return the current statistics, or the final ones of a closed pipeline; cheap.

        Raises:
            PipelineClosedError: the pipeline has never been open.
        """
        if self._stages is None:
            raise PipelineClosedError("the pipeline has not been open yet; use it inside 'async with'")
        # Another thread may call this, so the three numbers may be of different moments.
        in_flight = len(self._reserved) + len(self._submitted) - self._stages.waiting
        return Statistics(
            **self._stages.statistics(),
            uploaded=self._uploaded,
            failed=self._failed,
            uploaded_bytes=self._uploaded_bytes,
            upload_limit=self._stages.rate_limiter.limit,
            retries=self._stages.rate_limiter.retries,
            waiting=self._stages.waiting,
            in_flight=max(0, in_flight) if self.is_open else 0,
            shed=self._shed,
            abandoned=self._abandoned,
            transparent=self._transparent,
            faint=self._faint,
            retry_reason=self._stages.rate_limiter.retry_reason,
        )

    # From callers to the stages -------------------------------------------------------------------------------------

    async def _range_for(
        self, source: AnySource, recorder: Recorder | None, mode: Select | RepairMode, report: Report
    ) -> ValueRange | None:
        """Return the value range, for which all maps may have to be read; None if :meth:`drain` stopped that."""
        value_range, sketch = self._range, None
        if not value_range.is_known:
            value_range = await known_range(self.settings, recorder, mode)
        if not value_range.is_known:
            refuse_one_shot(source)
            listing = self._list(source, None, recorder)
            sketch = await self._until_drained(partial(survey, listing, self.settings, report))
            if sketch is None:
                return None
            value_range = await range_of_all(sketch, value_range)
            if report.unsurveyed or not sketch.count:
                # Perhaps because of an outage: do not keep the incomplete range for later runs.
                sketch = None
        if recorder is not None:
            await recorder.keep(self.settings, value_range, source, sketch)
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
            settings=self.settings,
            known=known,
            limit=report.limit,
            pass_over=report.pass_over,
            destination=self._opened()[1].store.destination,
            questions=self._questions,
            coverage=coverage,
        )
        return numbered(listing) if self._template.needs_index else listing

    async def _outcomes(
        self, listing: AsyncGenerator[list[Entry], None], value_range: ValueRange, ordered: bool = False
    ) -> AsyncGenerator[list[Outcome], None]:
        """Pass a listing to the stages, and yield lists of all outcomes that are ready."""
        flow = Flow(_WINDOW, ordered=ordered)
        self._callers[flow.end] = ""
        feeder = OrderlyTask(partial(self._feed, listing, flow, value_range))
        self._feeders.add(feeder)
        try:
            while outcomes := await flow.collect():
                yield outcomes
        finally:
            self._callers.pop(flow.end, None)
            self._feeders.discard(feeder)
            await feeder.cancel()

    async def _feed(self, listing: AsyncGenerator[list[Entry], None], flow: Flow, value_range: ValueRange) -> None:
        try:
            async with aclosing(listing):
                # A batch is empty if all of its maps were skipped.
                while (batch := await self._until_drained(partial(anext, listing, None))) is not None:
                    for entry in await self._claimed(batch):
                        if (number := await self._until_drained(flow.admit)) is None:
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

    async def _until_drained(self, wait: Callable[[], Awaitable[T]]) -> T | None:
        """Return the result of ``wait``, or None if the pipeline is drained first."""
        if self._draining:
            return None
        with CancelScope() as waiting:
            self._until_drain.add(waiting)
            try:
                return await wait()
            finally:
                self._until_drain.discard(waiting)
        return None

    async def _claimed(self, entries: list[Entry]) -> list[Entry]:
        """Turn maps whose overlay would overwrite another map's into failures."""
        _, stages = self._opened()
        store = stages.store
        entries = [with_key(entry, store.prefix, self._template, store.locator) for entry in entries]
        return entries if self._claims is None else await to_thread.run_sync(self._claims.check, entries)

    async def _submit(
        self,
        entry: Entry,
        settle: Callable[[Outcome | AsyncMapsError], None],
        value_range: ValueRange,
        reservation: Reservation | None = None,
    ) -> None:
        """Pass one map to the stages, when there is room or with its reservation; ``settle`` gets its outcome."""
        serving, stages = self._opened()
        if isinstance(entry, Failure):
            if reservation is not None:
                self._withdraw(reservation)
            self._settle(settle, value_range.is_relative, entry)
            return
        if not self._submitted:
            self._throughput.begin()
        self._submitted.add(settle)
        if reservation is not None:
            self._reserved.discard(reservation)
        try:
            await stages.submit(entry, partial(self._settle, settle, value_range.is_relative), value_range, reservation)
        except (BrokenResourceError, ClosedResourceError) as error:
            self._submitted.discard(settle)
            if isinstance(error, BrokenResourceError) and not self._abandoned_because:
                # The stages have ended; wait for the reason.
                await asyncio.wait({serving.task})
                raise self._ended() from None
            reason = self._abandoned_because or "the pipeline was closed before there was room for it"
            raise PipelineClosedError(
                f"map {entry.name} is not stored: {reason}; put it again", may_pass=True
            ) from None
        except BaseException:
            # If the cancellation came when the map had already got its place, the map goes on and is settled later.
            self._submitted.discard(settle)
            raise

    def _settle(
        self,
        settle: Callable[[Outcome | AsyncMapsError], None],
        relative: bool,  # bound by position
        outcome: Outcome | AsyncMapsError,
    ) -> None:
        self._submitted.discard(settle)
        if self._abandoned_because:
            return
        self._throughput.count()
        if isinstance(outcome, Receipt):
            self._uploaded += 1
            self._uploaded_bytes += outcome.size
            self._transparent += outcome.statistics.transparent
            self._faint += outcome.statistics.faint
            if relative and not self._warned and outcome.statistics.is_flat:
                self._warned = True
                _logger.warning(
                    "map %s is constant, or almost all of its values are equal: with range %s its overlay has one or "
                    "two colors (columns constant, range_low, range_high of the manifest; other maps are not reported)",
                    outcome.name, self.settings.range,
                )  # fmt: skip
        else:
            self._failed += 1
        settle(outcome)

    def _ended(self) -> AsyncMapsError:
        """Return why the pipeline has ended: a new error for each caller, because each adds its own traceback."""
        error = copy(self._end)
        error.__cause__ = self._end.__cause__
        return error

    def _opened(self) -> tuple[OrderlyTask[None], Stages]:
        if self._stages is None or self._serving is None:
            raise PipelineClosedError("the pipeline is not open; use it inside 'async with'")
        if self._serving.done():
            raise PipelineClosedError("the pipeline is not open anymore") from self._end
        return self._serving, self._stages
