"""Whole runs in one call: coroutines, and their synchronous versions."""

from __future__ import annotations

import logging
import os
from contextlib import aclosing, nullcontext, suppress
from typing import TYPE_CHECKING

from anyio import EndOfStream, WouldBlock, create_memory_object_stream, to_thread

from async_maps.blocking import blocking, refuse_bound
from async_maps.concurrency.loop import open_portal
from async_maps.concurrency.streams import receive, send
from async_maps.concurrency.tasks import OrderlyTask
from async_maps.errors import AsyncMapsError
from async_maps.manifest.claims import claims_of, distinct
from async_maps.manifest.prune import Selection
from async_maps.manifest.recorder import open_reader
from async_maps.outcomes import Failure, Outcome
from async_maps.pipeline import Pipeline
from async_maps.plans.ranges import given_range
from async_maps.progress import reporting
from async_maps.report import Report, counting_selected
from async_maps.settings import Settings, given_or_default
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.batches import list_maps, numbered, with_key
from async_maps.sources.headers import known_failure
from async_maps.sources.layouts import Questions
from async_maps.stores import open_store
from async_maps.survey import refuse_one_shot

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator
    from os import PathLike

    from async_maps.manifest.manifest import Select
    from async_maps.manifest.prune import Prune
    from async_maps.progress import OnProgress
    from async_maps.render.ranges import ValueRange
    from async_maps.sources.batches import AnySource, Entry
    from async_maps.stores import Destination

_logger = logging.getLogger("async_maps")

_BATCH_OUTCOMES = 64
"""Outcomes per switch between threads; a switch takes as long as a small map."""


async def arun(  # noqa: PLR0913  # those of Pipeline.run()
    source: AnySource,
    destination: Destination,
    *,
    settings: Settings | None = None,
    manifest: str | PathLike[str] | None = None,
    select: Select = "changed",
    limit: int | None = None,
    prune: Prune | None = None,
    prune_all: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Open a pipeline, put every map of a source, and close it.

    Args:
        source: as for :meth:`Pipeline.run`. A synchronous call does not accept an async iterable if an event loop runs
            in its thread.
        destination: as for :class:`Pipeline`.
        settings: the defaults if None.
        manifest: as for :meth:`Pipeline.run`.
        select: as for :meth:`Pipeline.run`.
        limit: as for :meth:`Pipeline.run`.
        prune: as for :meth:`Pipeline.run`.
        prune_all: as for :meth:`Pipeline.run`.
        on_progress: as for :meth:`Pipeline.run`.

    Returns:
        The report.

    Raises:
        AsyncMapsError: as :class:`Pipeline` and :meth:`Pipeline.run`.
    """
    report = _new_report(destination, settings, limit)
    try:
        async with Pipeline(destination, settings=settings) as pipeline:
            report = await pipeline.run(
                source,
                manifest=manifest,
                select=select,
                limit=limit,
                prune=prune,
                prune_all=prune_all,
                on_progress=on_progress,
            )
    except AsyncMapsError as error:
        if error.report is None:
            report.end(error)
        raise
    return report


run = blocking(arun)
"""Put every map of a source, and block until all are done."""


def stream(
    source: AnySource,
    destination: Destination,
    *,
    settings: Settings | None = None,
    ordered: bool = False,
    limit: int | None = None,
) -> Generator[Outcome, None, None]:
    """Put every map of a source and yield each outcome: :func:`astream` for synchronous loops.

    The pipeline runs in another thread, and an iterable source is advanced in further threads. So set the state that
    PyTorch keeps per thread, such as ``torch.no_grad()``, inside the source or by decorating it. The source is read
    128 maps further ahead than by :meth:`Pipeline.stream`. To stop early, close the generator
    (``contextlib.closing``); maps in flight are abandoned.

    Args:
        source: as for :meth:`Pipeline.stream`; not an async iterable if an event loop runs in this thread.
        destination: as for :class:`Pipeline`.
        settings: the defaults if None.
        ordered: as for :meth:`Pipeline.stream`.
        limit: as for :meth:`Pipeline.run`.

    Yields:
        A receipt or a failure for each map.

    Raises:
        AsyncMapsError: as :class:`Pipeline` and :meth:`Pipeline.stream`.
    """
    refuse_bound(source, "async for outcome in am.astream(...)")
    give, take = create_memory_object_stream[Outcome](_BATCH_OUTCOMES)

    async def pump() -> None:
        outcomes = astream(source, destination, settings=settings, ordered=ordered, limit=limit)
        async with give, aclosing(outcomes):
            async for outcome in outcomes:
                await send(give, outcome)

    async def collect() -> list[Outcome]:
        """Wait for and return all new outcomes; [] at the end."""
        outcomes = []
        if (outcome := await receive(take)) is not None:
            outcomes.append(outcome)
            with suppress(WouldBlock, EndOfStream):
                while len(outcomes) < _BATCH_OUTCOMES:
                    outcomes.append(take.receive_nowait())
        return outcomes

    with give, take, open_portal() as portal:
        pumping = portal.start_task_soon(pump)
        while outcomes := portal.call(collect):
            yield from outcomes
        pumping.result()


async def astream(
    source: AnySource,
    destination: Destination,
    *,
    settings: Settings | None = None,
    ordered: bool = False,
    limit: int | None = None,
) -> AsyncGenerator[Outcome, None]:
    """Open a pipeline, put every map of a source, yield each outcome, and close the pipeline.

    To stop early, close the generator (``contextlib.aclosing``); maps in flight are abandoned.

    Args:
        source: as for :meth:`Pipeline.stream`.
        destination: as for :class:`Pipeline`.
        settings: the defaults if None.
        ordered: as for :meth:`Pipeline.stream`.
        limit: as for :meth:`Pipeline.run`.

    Yields:
        A receipt or a failure for each map.

    Raises:
        AsyncMapsError: as :class:`Pipeline` and :meth:`Pipeline.stream`.
    """
    async with (
        Pipeline(destination, settings=settings) as pipeline,
        aclosing(pipeline.stream(source, ordered=ordered, limit=limit)) as outcomes,
    ):
        async for outcome in outcomes:
            yield outcome


async def adry_run(  # noqa: PLR0913  # those of arun()
    source: AnySource,
    destination: Destination,
    *,
    settings: Settings | None = None,
    manifest: str | PathLike[str] | None = None,
    select: Select = "changed",
    limit: int | None = None,
    prune: Prune | None = None,
    prune_all: bool = False,
    on_progress: OnProgress | None = None,
) -> Report:
    """Report what :func:`arun` would do, from listings and headers: nothing is written or uploaded.

    The report is exact for names, counts and selection. Values are not read, so a map that is ``planned`` may still
    fail. Maps that are already known to fail are failures, with the stage and the reason of a run.

    Args:
        source: as for :meth:`Pipeline.run`.
        destination: as for :class:`Pipeline`.
        settings: the defaults if None.
        manifest: as for :meth:`Pipeline.run`; it is only read.
        select: as for :meth:`Pipeline.run`.
        limit: as for :meth:`Pipeline.run`.
        prune: as for :meth:`Pipeline.run`.
        prune_all: as for :meth:`Pipeline.run`.
        on_progress: as for :meth:`Pipeline.run`.

    Returns:
        A report whose ``planned`` counts the maps that would be done, and whose ``dry_run`` is true.

    Raises:
        AsyncMapsError: as :class:`Pipeline` and :meth:`Pipeline.run`.
    """
    report = _new_report(destination, settings, limit, dry_run=True)
    settings = given_or_default(settings)
    selection = Selection(source, manifest, select, limit, settings, prune, prune_all)
    selection.check(destination)
    if settings.value_range.kind == "dataset":
        refuse_one_shot(source)
    template = settings.key_template

    async def plan() -> None:
        async with (
            reporting(on_progress, report, source, settings=settings),
            open_store(destination, settings) as store,
        ):
            await store.check()
            report.destination = store.destination
            async with open_reader(manifest, store.identity, settings) as recorder:
                # A range that all maps must be read for is not known here, and none of them done with it.
                value_range = await given_range(settings, recorder, select)
                recorder.use(settings, value_range)
                # Files of maps to do are opened even if an earlier run knows them: the header may show a failure.
                listing = list_maps(
                    source,
                    settings=settings,
                    known=None if select == "all" else recorder.known_done,
                    limit=limit,
                    pass_over=report.pass_over,
                    destination=store.destination,
                    questions=Questions(),
                    coverage=recorder.follow(selection, report),
                )
                listing = numbered(listing) if template.needs_index else listing
                claims = await claims_of(store, template)
                with claims or nullcontext():
                    if claims is not None and select != "all":
                        await recorder.load_claims(claims, select)
                    listing = distinct(listing) if manifest is None else recorder.select_maps(listing, select, report)
                    async with aclosing(counting_selected(listing, report)) as batches:
                        async for batch in batches:
                            entries = [with_key(entry, store.prefix, template, store.locator) for entry in batch]
                            if claims is not None:
                                entries = await to_thread.run_sync(claims.check, entries)
                            checked = [_checked(entry, value_range, settings) for entry in entries]
                            report.count([entry for entry in checked if isinstance(entry, Failure)])
                            report.planned += sum(isinstance(entry, ActivationMap) for entry in checked)
                            if _logger.isEnabledFor(logging.DEBUG):
                                for entry in checked:
                                    _log(entry)
                    await recorder.complete()

    try:
        await OrderlyTask(plan).result()
    except BaseException as error:
        report.end(error)
        raise
    report.end()
    return report


def _new_report(
    destination: Destination, settings: Settings | None, limit: int | None, *, dry_run: bool = False
) -> Report:
    place = os.fspath(destination) if isinstance(destination, str | os.PathLike) else ""
    plain = given_or_default(settings).model_dump(mode="json")
    return Report(destination=place, settings=plain, limit=limit, dry_run=dry_run)


def _checked(entry: Entry, value_range: ValueRange, settings: Settings) -> Entry:
    if not isinstance(entry, ActivationMap):
        return entry
    return known_failure(entry, value_range, settings.max_pixels, settings.channels) or entry


def _log(entry: Entry) -> None:
    if isinstance(entry, Failure):
        _logger.debug("would fail: %s", entry)
    else:
        _logger.debug("would be done: %s (%s)", entry.name, entry.source)


dry_run = blocking(adry_run)
"""Report what ``run`` would do, and block until that is known."""
