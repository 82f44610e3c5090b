"""A whole batch in one call: from synchronous code, or as a dry run."""

from __future__ import annotations

from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

from anyio import EndOfStream, WouldBlock, create_memory_object_stream, to_thread
from anyio.from_thread import start_blocking_portal

from async_maps.concurrency.loop import fastest_loop, run_loop
from async_maps.concurrency.streams import receive, send
from async_maps.concurrency.tasks import OrderlyTask
from async_maps.manifest.claims import Claims
from async_maps.manifest.recorder import open_reader
from async_maps.outcomes import Failure, Outcome
from async_maps.pipeline import Pipeline
from async_maps.report import Report
from async_maps.settings import Settings
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.batches import list_maps, numbered, with_key
from async_maps.stores import open_store
from async_maps.survey import known_range, refuse_one_shot

if TYPE_CHECKING:
    from collections.abc import Generator
    from os import PathLike

    from async_maps.manifest.manifest import Select
    from async_maps.sources.batches import AnySource

_HANDED_OVER = 64
"""Outcomes given to another thread at once, where so many are there: a hop for each costs as much as a small map."""


def run(  # noqa: PLR0913  # those of Pipeline.run()
    source: AnySource,
    destination: str | PathLike[str],
    *,
    settings: Settings | None = None,
    manifest: str | PathLike[str] | None = None,
    select: Select = "changed",
    report: Report | None = None,
) -> Report:
    """:meth:`Pipeline.run` from synchronous code: opens a pipeline, puts every map, closes it.

    Raises:
        AsyncMapsError: as ``Pipeline`` and ``Pipeline.run``.
    """

    async def main() -> Report:
        async with Pipeline(destination, settings=settings) as pipeline:
            return await pipeline.run(source, manifest=manifest, select=select, report=report)

    return run_loop(main())


def stream(
    source: AnySource,
    destination: str | PathLike[str],
    *,
    settings: Settings | None = None,
    ordered: bool = False,
) -> Generator[Outcome, None, None]:
    """:meth:`Pipeline.stream` from synchronous code: opens a pipeline, gives each outcome, closes it.

    The pipeline runs in a thread of its own, and an iterable source is advanced in others: what PyTorch keeps for each
    thread, as ``torch.no_grad()`` does, is to be set between two ``yield`` of the source, or by decorating it. The
    source is read as far ahead as :meth:`Pipeline.stream` says, and 128 maps further. Closed early
    (``contextlib.closing``), what is in flight is abandoned.

    Raises:
        AsyncMapsError: as ``Pipeline`` and ``Pipeline.stream``.
    """
    give, take = create_memory_object_stream[Outcome](_HANDED_OVER)

    async def pump() -> None:
        async with (
            give,
            Pipeline(destination, settings=settings) as pipeline,
            aclosing(pipeline.stream(source, ordered=ordered)) as outcomes,
        ):
            async for outcome in outcomes:
                await send(give, outcome)

    async def come() -> list[Outcome]:
        """What has come since the last call, at least one; none at the end."""
        outcomes = []
        if (outcome := await receive(take)) is not None:
            outcomes.append(outcome)
            with suppress(WouldBlock, EndOfStream):
                while len(outcomes) < _HANDED_OVER:
                    outcomes.append(take.receive_nowait())
        return outcomes

    fastest = {"loop_factory": fastest_loop()}
    # Left by an exception, Ctrl-C among them, the portal cancels what runs there and waits for it.
    with give, take, start_blocking_portal(backend_options=fastest, name="async-maps") as portal:
        pumping = portal.start_task_soon(pump)
        while outcomes := portal.call(come):
            yield from outcomes
        pumping.result()


async def dry_run(  # noqa: PLR0913  # those of run()
    source: AnySource,
    destination: str | PathLike[str],
    *,
    settings: Settings | None = None,
    manifest: str | PathLike[str] | None = None,
    select: Select = "changed",
    report: Report | None = None,
) -> Report:
    """Say what :meth:`Pipeline.run` would do, as far as a listing tells: nothing is read, written or uploaded.

    Returns:
        a report whose ``planned`` counts the maps that would be done.

    Raises:
        AsyncMapsError: as ``Pipeline`` and ``Pipeline.run``.
    """
    settings, filled = settings or Settings(), report or Report()
    if settings.value_range.kind == "dataset":
        refuse_one_shot(source)
    template = settings.key_template

    async def plan() -> None:
        async with open_store(destination, settings) as store:
            await store.check()
            filled.destination = store.destination
            async with open_reader(manifest, store.identity) as recorder:
                # A range that all maps must be read for is not known here, and none of them done with it.
                recorder.use(settings, await known_range(settings, recorder, select))
                listing = list_maps(source, s3=settings.s3, known=recorder.known, max_pixels=settings.max_pixels)
                listing = numbered(listing) if template.needs_index else listing
                claims = Claims(lambda map_: store.locator(template.key(store.prefix, map_.name, map_.index)))
                with claims:
                    if template.may_collide and select != "all":
                        await recorder.load_claims(claims, select)
                    async with aclosing(recorder.select_maps(listing, select, filled)) as batches:
                        async for batch in batches:
                            entries = [with_key(entry, store.prefix, template) for entry in batch]
                            if template.may_collide:
                                entries = await to_thread.run_sync(claims.check, entries)
                            filled.count([entry for entry in entries if isinstance(entry, Failure)])
                            filled.planned += sum(isinstance(entry, ActivationMap) for entry in entries)

    await OrderlyTask(plan).result()
    return filled
