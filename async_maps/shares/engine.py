"""What runs the parts of a plan: this process, or the machines of a cluster."""

from __future__ import annotations

import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from anyio import create_memory_object_stream

from async_maps.concurrency.fan_out import fan_out
from async_maps.concurrency.tasks import OrderlyTask
from async_maps.pipeline import Pipeline
from async_maps.plans.commits import read_plan
from async_maps.plans.place import opened_place
from async_maps.plans.ranges import settings_of
from async_maps.shares.part import PartDone, PartFailed, Parts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from async_maps.settings import Settings

PartOutcome: TypeAlias = PartDone | PartFailed


class Work(NamedTuple):
    """What is done with parts. It can be pickled.

    Attributes:
        plan: the address of the plan.
        settings: how to run; what shapes the overlays comes from the plan.
    """

    plan: str
    settings: Settings


class Engine(Protocol):
    """Runs parts. Retries are the engine's; what a part is, and that it is committed once, is not."""

    def run(
        self, work: Work, parts: AsyncGenerator[int, None], max_concurrent: int
    ) -> AsyncGenerator[PartOutcome, None]:
        """Run parts, and yield their outcomes as they come; closing the generator cancels the others.

        Args:
            work: what is done with them.
            parts: their numbers; the next one is taken when there is room for it.
            max_concurrent: how many parts run at a time.
        """
        ...


class LocalEngine:
    """Runs parts in this process, in one pipeline."""

    async def run(
        self, work: Work, parts: AsyncGenerator[int, None], max_concurrent: int
    ) -> AsyncGenerator[PartOutcome, None]:
        """Run parts, as :meth:`Engine.run`.

        Raises:
            PlanError: there is no plan, or this version cannot run it.
            StoreError: a store cannot be used; the parts that were running are not committed.
        """
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(opened_place(work.plan, work.settings))
            plan = await read_plan(place)
            pipeline = Pipeline(plan.destination, settings=await settings_of(place, plan, work.settings))
            await stack.enter_async_context(pipeline)
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="async-maps-parts-"))
            runner = Parts(place, plan, pipeline, Path(folder))
            sending, receiving = create_memory_object_stream[PartOutcome](0)

            async def run_one(part: int) -> None:
                await sending.send(await runner.run(part))

            async def run_all() -> None:
                with sending:
                    await fan_out(parts, [run_one] * max_concurrent, size=lambda _: 0, limit=1)

            running = OrderlyTask(run_all)
            try:
                with receiving:
                    async for outcome in receiving:
                        yield outcome
                await running.result()
            finally:
                await running.cancel()
