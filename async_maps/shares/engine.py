"""What runs the parts of a plan: this process, or the machines of a cluster."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from anyio import create_memory_object_stream

from async_maps.concurrency.fan_out import fan_out
from async_maps.concurrency.tasks import OrderlyTask
from async_maps.pipeline import Pipeline
from async_maps.plans.commits import read_plan
from async_maps.plans.place import opened_place
from async_maps.plans.ranges import settings_of
from async_maps.shares.folder import manifests_folder
from async_maps.shares.part import PartDone, PartFailed, Parts, PartStopped
from async_maps.shares.retry import Retries
from async_maps.shares.survey import PartSurveys

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from async_maps.plans.document import Plan
    from async_maps.plans.place import Place
    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.stages.meters import Statistics


EngineName: TypeAlias = Literal["local", "ray"]
Task: TypeAlias = Literal["run", "retry", "survey"]
PartOutcome: TypeAlias = PartDone | PartStopped | PartFailed

_IN_FLIGHT = 2
"""Parts at a time: while the last maps of one are stored, the next one is read."""


class Work(NamedTuple):
    """What is done with parts. It can be pickled.

    Attributes:
        plan: the address of the plan.
        settings: how to run; what shapes the overlays comes from the plan.
        task: ``run``, ``retry`` (the failed maps of committed parts are run again) or ``survey`` (the maps are read for
            the range of the plan).
    """

    plan: str
    settings: Settings
    task: Task = "run"


class Engine(Protocol):
    """Runs parts. Retries are the engine's; what a part is, and that it is committed once, is not."""

    def run(
        self, work: Work, parts: AsyncGenerator[int, None], max_concurrent: int | None = None
    ) -> AsyncGenerator[PartOutcome, None]:
        """Run parts, and yield their outcomes as they come; closing the generator cancels the others.

        Args:
            work: what is done with them.
            parts: their numbers; the next one is taken when there is room for it.
            max_concurrent: how many parts run at a time; by default as many as there are places for.
        """
        ...

    def drain(self) -> None:
        """Start no further part, and end those that run early; they are not committed."""


class LocalEngine:
    """Runs parts in this process, in one pipeline.

    Attributes:
        running: the report so far of each part that runs; that of a part that has ended stays until the next outcome
            is asked for.
    """

    def __init__(self) -> None:
        self.running: dict[int, Report] = {}
        self._pipeline: Pipeline | None = None
        self._parts: Parts | PartSurveys | None = None

    @property
    def is_open(self) -> bool:
        """Whether it runs parts."""
        return self._parts is not None and self._parts.is_open

    @property
    def statistics(self) -> Statistics | None:
        """The state of its pipeline, also after its end; None before it."""
        return None if self._parts is None or self._pipeline is None else self._pipeline.statistics()

    def drain(self) -> None:
        """Start no further part, and finish the maps in flight; a part that is not read to its end is not committed."""
        if self._parts is not None:
            self._parts.drain()

    async def run(
        self, work: Work, parts: AsyncGenerator[int, None], max_concurrent: int | None = None
    ) -> AsyncGenerator[PartOutcome, None]:
        """Run parts, as :meth:`Engine.run`.

        Raises:
            PlanError: there is no plan, or this version cannot run it.
            StoreError: a store cannot be used; the parts that were running are not committed.
        """
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(opened_place(work.plan, work.settings))
            plan = await read_plan(place)
            runner = await stack.enter_async_context(self._opened(work, place, plan))
            self._parts = runner
            self.running = runner.running
            sending, receiving = create_memory_object_stream[PartOutcome](0)

            async def run_one(part: int) -> None:
                await sending.send(await runner.run(part))

            async def run_all() -> None:
                with sending:
                    await fan_out(parts, [run_one] * (max_concurrent or _IN_FLIGHT), size=lambda _: 0, limit=1)

            running = OrderlyTask(run_all)
            try:
                with receiving:
                    async for outcome in receiving:
                        yield outcome
                        self.running.pop(outcome.part, None)
                await running.result()
            finally:
                await running.cancel()

    @asynccontextmanager
    async def _opened(self, work: Work, place: Place, plan: Plan) -> AsyncIterator[Parts | PartSurveys]:
        if work.task == "survey":
            yield PartSurveys(place, plan, plan.settings(work.settings))
            return
        settings = await settings_of(place, plan, work.settings)
        if work.task == "retry" and not settings.worker_count:
            # A process may have died of one of the failed maps, which a worker names.
            settings = settings.model_copy(update={"workers": 1})
        async with manifests_folder() as folder, Pipeline(plan.destination, settings=settings) as pipeline:
            self._pipeline = pipeline
            yield (Retries if work.task == "retry" else Parts)(place, plan, pipeline, folder)
