"""The pipeline, the interface to the stages: open it once, use it in any number of tasks, close it.

This is the file to read first. It opens what the stages need and hands each call on: single maps to
:mod:`~async_maps.pipeline.intake`, those that take room first to :mod:`~async_maps.pipeline.rooms`, whole sources to
:mod:`~async_maps.pipeline.runs`. How a pipeline ends is in :mod:`~async_maps.pipeline.lifecycle`, and the processing
itself in :mod:`async_maps.stages`. Everything here runs on the event loop.
"""

from __future__ import annotations

from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING

from anyio import create_task_group

from async_maps.errors import PipelineClosedError
from async_maps.lanes.lanes import Lanes, lane_count
from async_maps.manifest.claims import claims_of
from async_maps.manifest.prune import Selection
from async_maps.pipeline.intake import Intake
from async_maps.pipeline.lifecycle import Lifecycle
from async_maps.pipeline.rooms import Rooms
from async_maps.pipeline.runs import Runs
from async_maps.pipeline.tally import Tally
from async_maps.plans.ranges import given_range
from async_maps.settings import Settings, given_or_default
from async_maps.sources.batches import check_limit
from async_maps.stages.graph import Stages
from async_maps.stores import open_store
from async_maps.workers.arena import Arena
from async_maps.workers.pool import launched_workers, start_workers
from async_maps.workers.worker import Recipe

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from os import PathLike
    from types import TracebackType
    from typing import Any

    from async_maps.manifest.manifest import RepairMode, Select
    from async_maps.manifest.prune import Prune
    from async_maps.outcomes import Outcome, Receipt
    from async_maps.pipeline.rooms import Room
    from async_maps.progress import OnProgress
    from async_maps.report import Report
    from async_maps.sources.batches import AnySource
    from async_maps.stages.meters import Statistics
    from async_maps.stores import Destination


class Pipeline:
    """Colorizes, encodes and uploads activation maps inside its ``async with`` block.

    Any number of tasks may use it concurrently. The end of the block waits until all accepted maps are done, as long as
    maps are stored or bytes move to the store. After ``settings.drain_timeout_s`` without either, the other maps are
    abandoned. An exception or a cancellation abandons them immediately. In all cases no process, socket or memory is
    left. A call that waits for an abandoned map raises PipelineClosedError; its overlay may or may not be stored.

    Args:
        destination: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``, ``file:///folder``, a
            plain path, ``memory://``, or a store (:class:`~async_maps.Store`), which the caller opens and closes.
        settings: the settings; the defaults if None.

    Raises:
        SettingsError: on entering, the destination is not valid.
        StoreError: on entering, the bucket does not exist or the store cannot be reached.
        WorkerError: on entering, a worker process cannot be started; later, one cannot be restarted, or a lane cannot
            be started.
    """

    def __init__(self, destination: Destination, *, settings: Settings | None = None) -> None:
        self.settings: Settings = given_or_default(settings)
        self._destination = destination
        self._tally = Tally()
        self._lifecycle = Lifecycle(self._open_stages, self._tally, self.settings.drain_timeout_s)
        self._intake = Intake(self.settings, self._lifecycle, self._tally)
        self._rooms = Rooms(self._lifecycle, self._intake, self._tally)
        self._runs = Runs(self.settings, self._lifecycle, self._intake, self.statistics)

    # Opening and closing --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Pipeline:
        await self._lifecycle.enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._lifecycle.leave(kind)

    @asynccontextmanager
    async def _open_stages(self) -> AsyncIterator[Stages]:
        """Open the store, the memory that processes share, and the workers; close them at the end of the block."""
        async with AsyncExitStack() as stack:
            settings, template = self.settings, self.settings.key_template
            recipe, lanes = Recipe.of(settings), lane_count(settings, self._destination)
            arena = stack.enter_context(Arena(settings.queue_size))
            # First of all, because the processes load their libraries while the store opens.
            launching = launched_workers(recipe, settings.worker_count, arena, later=lanes > 1)
            workers = await stack.enter_async_context(launching)
            store = await stack.enter_async_context(open_store(self._destination, settings))
            self._intake.value_range = await given_range(settings, None, "changed")
            async with create_task_group() as opening:
                opening.start_soon(store.check)
                await start_workers(workers, later=lanes > 1)
            self._intake.claims = claims = await claims_of(store, template)
            if claims is not None:
                stack.enter_context(claims)
            stages = (Lanes if lanes > 1 else Stages)(settings, store, arena, recipe, workers)
            stages.control.maps = lambda: len(self._tally.submitted)
            stages.control.is_reading = lambda: bool(self._intake.feeders)
            if isinstance(stages, Lanes):
                stages.answers.feeds = lambda: self._intake.feeds
            yield stages

    @property
    def is_open(self) -> bool:
        """Whether the pipeline accepts maps."""
        return self._lifecycle.is_open

    def drain(self) -> None:
        """Stop reading the sources of all runs and streams, and finish the maps that were read in a limited time.

        The maps that are not finished after ``settings.drain_timeout_s`` are abandoned. Their runs and streams raise
        PipelineClosedError, and the pipeline accepts no more maps.
        """
        self._lifecycle.drain()

    # Single maps ----------------------------------------------------------------------------------------------------

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
        self._intake.check_single()
        putting = self._intake.put(name, activation_map)
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
        return self._rooms.put_nowait(name, activation_map)

    def reserve(self, nbytes: int, *, timeout_s: float | None = None) -> AbstractAsyncContextManager[Room]:
        """Take room for a map before it is computed, so that an overloaded service refuses before its model runs.

        The room is taken when the block is entered, and what was not used is given back at its end. It is the room of
        :meth:`put_nowait`: together they hold at most ``chunk_maps`` maps and ``queue_bytes``, or one larger map.
        Closing the pipeline waits for the block, as for an accepted map.

        Args:
            nbytes: the total ``nbytes`` of the arrays that will be put into the room; usually of one.
            timeout_s: the longest wait for room in seconds; 0 does not wait, None waits as long as it takes.

        Returns:
            A context manager, whose value is the room; call its ``put``.

        Raises:
            PipelineFullError: there was no room in ``timeout_s``; ``retry_after_s`` says when to try again.
            SettingsError: ``nbytes`` or ``timeout_s`` is negative, and as for :meth:`put`.
            PipelineClosedError: the pipeline is not open in this event loop, or is being closed.
        """
        return self._rooms.reserve(nbytes, timeout_s)

    # Whole sources --------------------------------------------------------------------------------------------------

    async def stream(
        self, source: AnySource, *, ordered: bool = False, limit: int | None = None
    ) -> AsyncGenerator[Outcome, None]:
        """Put every map of a source, and yield the outcomes as they come.

        The second of two maps with one name fails; to replace an overlay on purpose, use :meth:`put`.
        The source is read no faster than the outcomes are taken. At most 4,096 maps are in flight, wait for their turn
        or have an outcome to be taken (1,024 for each of more than four lanes), and up to 256 maps are listed ahead.
        To stop early, close the generator with ``contextlib.aclosing``.

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
        self._lifecycle.opened()
        async with aclosing(self._runs.stream(source, ordered, limit)) as batches:
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
                earlier run with this manifest, which must exist) or ``all``.
            limit: try only this number of maps, the first of the source; skipped maps count, too. A later run without
                it does the rest. If ``settings.range`` is ``dataset``, all maps are still read for the range, so that
                the colors are the same.
            prune: after a whole run, with a path as source, forget maps that are no longer in it: ``rows`` of the
                manifest, or ``objects``, the rows and their overlays in a bucket or a folder. If a file or folder
                cannot be read, nothing is pruned.
            prune_all: prune even if more than half of the overlays are of maps that are gone.
            on_progress: called with a :class:`~async_maps.Progress` five times a second and at the end, on the event
                loop, which it must not block. An error that it raises ends the run.

        Returns:
            The report. If the run ends with an AsyncMapsError, the report is that error's ``report``.

        Raises:
            SourceError: the source does not exist, or contains no map.
            StoreError: the store refuses all maps, or cannot be reached.
            ManifestError: the manifest cannot be used or written; with ``failed``, it does not exist.
            SettingsError: ``settings.range`` is ``dataset``, and the source can be read only once; ``select`` or
                ``prune`` has another value; ``limit`` is not positive; or this run cannot prune. At the end of the
                run: more than half would be pruned.
            TooManyFailuresError: more maps failed than ``settings.max_failures``.
            PipelineClosedError: the pipeline was closed, and the maps in flight were abandoned. Run it again for the
                rest.
        """
        selection = Selection(source, manifest, select, limit, self.settings, prune, prune_all)
        selection.check(self._destination)
        return await self._runs.run(selection, on_progress)

    async def _repair(
        self, source: str, manifest: str | PathLike[str], mode: RepairMode, on_outcomes: Callable[[list[Outcome]], None]
    ) -> Report:
        """Put the maps of rows that ``verify`` found broken."""
        return await self._runs.repair(Selection(source, manifest, mode, None, self.settings), on_outcomes)

    def statistics(self) -> Statistics:
        """Return the current statistics, or the final ones of a closed pipeline; cheap.

        Raises:
            PipelineClosedError: the pipeline has never been open.
        """
        stages = self._lifecycle.stages
        if stages is None:
            raise PipelineClosedError("the pipeline has not been open yet; use it inside 'async with'")
        return self._tally.statistics(stages, is_open=self.is_open)
