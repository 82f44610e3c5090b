"""Runs a share of the parts of a plan, and then those that no other share has committed."""

from __future__ import annotations

import logging
import os
import random
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from glob import has_magic
from typing import TYPE_CHECKING

from anyio import to_thread

from async_maps.blocking import blocking
from async_maps.concurrency.tasks import OrderlyTask, calling_every
from async_maps.errors import PipelineClosedError, SettingsError, SourceError
from async_maps.filesystems.addresses import is_remote
from async_maps.keys import printable
from async_maps.plans.commits import committed_parts, read_footers, read_plan, started_parts
from async_maps.plans.place import opened_place
from async_maps.plans.ranges import needs_range, settings_of, surveyed_parts
from async_maps.plans.schedulers import share_of
from async_maps.settings import S3Settings, given_or_default
from async_maps.settings.s3 import HEADERS
from async_maps.shares.engine import LocalEngine, Work
from async_maps.shares.report import ShareProgress, ShareReport
from async_maps.tables import is_table

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from os import PathLike

    from async_maps.plans.document import Plan
    from async_maps.plans.place import Place
    from async_maps.progress import OnProgress
    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.shares.engine import Engine, EngineName, Task
    from async_maps.stages.meters import Statistics

_logger = logging.getLogger("async_maps")

_INTERVAL_S = 0.2
_LOGGED = 3
"""The warnings that are logged: those of other parts are like them."""


class Share:
    """A share of the parts of a plan, which is run once.

    Args:
        plan: the address of the plan.
        part: which share of how many, from 1: ``(3, 8)``.
        settings: how to run; what shapes the overlays comes from the plan.
        engine: what runs the parts: ``local``, this process, or ``ray``, a Ray cluster.
        address: the address of the Ray cluster; see :func:`arun_plan`.
        retry_failed: only run the failed maps of its committed parts again.
        survey: only read the maps, for the range of the plan.

    Attributes:
        report: what is done, without the parts that run.

    Raises:
        SettingsError: there is no such share or engine, the engine has no address, or retry_failed and survey are both
            given.
    """

    def __init__(  # noqa: PLR0913  # those of arun_plan()
        self,
        plan: str | PathLike[str],
        part: tuple[int, int] = (1, 1),
        *,
        settings: Settings | None = None,
        engine: EngineName = "local",
        address: str | None = None,
        retry_failed: bool = False,
        survey: bool = False,
    ) -> None:
        if retry_failed and survey:
            raise SettingsError("retry_failed and survey exclude each other")
        self.part = share_of(f"{part[0]}/{part[1]}")
        self._settings = given_or_default(settings)
        self._engine = _engine(engine, address)
        self._local = self._engine if isinstance(self._engine, LocalEngine) else None
        self._task: Task = "retry" if retry_failed else "survey" if survey else "run"
        self._is_running = self._is_draining = False
        plain = self._settings.model_dump(mode="json")
        self.report = ShareReport(plan=os.fspath(plan), part=self.part, task=self._task, settings=plain)

    @property
    def is_open(self) -> bool:
        """Whether parts run, which can be drained."""
        return self._is_running if self._local is None else self._local.is_open

    def drain(self) -> None:
        """Start no further part. Those that run end early and are not committed; in this process, maps are finished."""
        self._is_draining = True
        self._engine.drain()

    def statistics(self) -> Statistics:
        """Return the current statistics, or the final ones.

        Raises:
            PipelineClosedError: no pipeline of this process has been open.
        """
        if (found := self._statistics) is None:
            raise PipelineClosedError("no pipeline of this process has been open")
        return found

    async def run(self, on_progress: OnProgress | None = None) -> ShareReport:
        """Run the parts, and return the report, which an error has, too.

        Raises:
            AsyncMapsError: as :func:`arun_plan`.
        """
        try:
            await OrderlyTask(partial(self._run, on_progress)).result()
        except BaseException as error:
            self.report = self._now()
            self.report.end(error)
            raise
        self.report = self._now()
        self.report.end()
        return self.report

    async def _run(self, on_progress: OnProgress | None) -> None:
        async with AsyncExitStack() as stack:
            place = await stack.enter_async_context(opened_place(self.report.plan, self._settings))
            self.report.plan = place.address
            plan = await read_plan(place)
            self.report.parts, self.report.destination = plan.parts, plan.destination
            shared = _shared_out(self._settings, self.part[1])
            merged = await self._merged(place, plan, shared)
            _refuse_others(self._settings, plan)
            self.report.settings = merged.model_dump(mode="json")
            if self._local is not None:
                await to_thread.run_sync(_check_source, plan)
            if on_progress is not None:
                await stack.enter_async_context(calling_every(_INTERVAL_S, partial(self._show, on_progress)))
            chosen = self._failed_parts if self._task == "retry" else self._parts
            parts = await stack.enter_async_context(aclosing(chosen(place, plan)))
            work = Work(place.address, shared, self._task)
            outcomes = await stack.enter_async_context(aclosing(self._engine.run(work, parts)))
            self._is_running = True
            async for outcome in outcomes:
                told = len(self.report.warnings)
                self.report.count_part(outcome, self._reports.get(outcome.part))
                for warning in self.report.warnings[told:_LOGGED]:
                    _logger.warning("part %s: %s", outcome.part, warning)
            self.report.drained |= self._is_draining

    async def _merged(self, place: Place, plan: Plan, shared: Settings) -> Settings:
        if self._task != "survey":
            return await settings_of(place, plan, shared)
        if not needs_range(plan):
            found = plan.shaping["range"]
            raise SettingsError(f"the plan has range {found}, which needs no survey: run its shares without --survey")
        return plan.settings(shared)

    def _show(self, on_progress: OnProgress, ended: bool) -> None:
        report = self._now()
        report.tick()
        on_progress(ShareProgress(report, report.statistics, ended=ended))

    def _now(self) -> ShareReport:
        """Return the report with the parts that run."""
        report = self.report.copy()
        for part in self._reports.values():
            report.add(part)
        report.statistics = self._statistics
        return report

    @property
    def _reports(self) -> Mapping[int, Report]:
        """The reports of the parts that run in this process."""
        return {} if self._local is None else self._local.running

    @property
    def _statistics(self) -> Statistics | None:
        return None if self._local is None else self._local.statistics

    async def _parts(self, place: Place, plan: Plan) -> AsyncGenerator[int, None]:
        """Yield the parts of the share, and then those that no other share has done."""
        order, own = self._order(plan)
        done_parts = surveyed_parts if self._task == "survey" else committed_parts
        done = {*await done_parts(place, plan)}
        own = [part for part in own if part not in done]
        self.report.to_do = len(own)
        for part in own:
            if self._is_draining:
                return
            yield part
        done = {*await done_parts(place, plan), *own}
        started = await started_parts(place, plan)
        left = [part for part in order if part not in done]
        # Those that another share runs, or has left, come last.
        for part in sorted(random.sample(left, len(left)), key=started.__contains__):
            if self._is_draining:
                return
            self.report.to_do += 1
            yield part

    async def _failed_parts(self, place: Place, plan: Plan) -> AsyncGenerator[int, None]:
        """Yield the committed parts of the share that have failed maps."""
        _, own = self._order(plan)
        failed = {footer.part for footer in await read_footers(place, plan, {*own}) if footer.failures}
        self.report.to_do = len(failed)
        for part in own:
            if self._is_draining:
                return
            if part in failed:
                yield part

    def _order(self, plan: Plan) -> tuple[list[int], list[int]]:
        """Return all parts, and those of the share, in their order."""
        index, count = self.part
        # In a random order, the same for all: neighbors in the order of keys would meet one partition of S3.
        order = random.Random(plan.id).sample(range(1, plan.parts + 1), plan.parts)  # noqa: S311
        return order, order[index - 1 :: count]


async def arun_plan(  # noqa: PLR0913  # one argument per option
    plan: str | PathLike[str],
    part: tuple[int, int] = (1, 1),
    *,
    settings: Settings | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    retry_failed: bool = False,
    survey: bool = False,
    on_progress: OnProgress | None = None,
) -> ShareReport:
    """Run a share of the parts of a plan, then those that no share has committed yet.

    Args:
        plan: the address of the plan.
        part: which share of how many, from 1: ``(3, 8)``.
        settings: how to run: what shapes the overlays comes from the plan, and must not differ from it here. ``rate``
            and ``bandwidth`` are for all shares together.
        engine: what runs the parts: ``local``, this process, or ``ray``, a Ray cluster (extra ``ray``): a task with one
            CPU for each part. Then the report has the counts of uploaded and failed maps only.
        address: the address of the Ray cluster, as for ``ray.init``: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.
            None for ``RAY_ADDRESS``; without that variable, a cluster of this machine, which ends with the call. If Ray
            is initialized already, that connection is used and kept: initialize it to run several plans at a time.
        retry_failed: only run the failed maps of the share's committed parts again. What changes is committed beside
            the first manifest of the part; then the plan can be committed again.
        survey: only read the maps of a plan with range ``dataset``, and store how often each value occurs. When all
            parts are surveyed, another call of :func:`aplan` finds the range, with which the plan can be run.
        on_progress: called with a :class:`~async_maps.Progress` five times a second and at the end, on the event loop,
            which it must not block. Its report is a :class:`~async_maps.ShareReport`.

    Returns:
        The report. A part with failed maps is committed, too: :func:`acommit_plan` tells of them. If the share ends
        with an AsyncMapsError, the report is that error's ``report``.

    Raises:
        PlanError: there is no plan, or this version cannot run it.
        SettingsError: the share does not exist, a setting differs from the plan's, or the plan needs a survey.
        StoreError: a store cannot be used. Run the share again for the rest.
    """
    share = Share(
        plan, part, settings=settings, engine=engine, address=address, retry_failed=retry_failed, survey=survey
    )
    return await share.run(on_progress)


run_plan = blocking(arun_plan)
"""Run a share of the parts of a plan, and block until all parts are committed."""


def _engine(name: EngineName, address: str | None) -> Engine:
    if name == "ray":
        from async_maps.shares.ray import RayEngine

        return RayEngine(address)
    if name != "local":
        raise SettingsError(f"engine {name!r}: expected local or ray")
    if address is not None:
        raise SettingsError(f"address {address!r}: only the engine ray has one; give engine ray too, or leave it out")
    return LocalEngine()


def _check_source(plan: Plan) -> None:
    """Check that this machine has the folder of the files, or all of them would fail.

    Raises SourceError, which may pass, if it has not.
    """
    source = plan.source
    if is_remote(source) or is_table(source) or has_magic(source) or not plan.parts:
        return
    if not os.path.exists(source):
        problem = "does not exist"
    elif _is_empty_folder(source):
        problem = "is empty"
    else:
        return
    raise SourceError(
        f"{printable(source)}, the source of the plan {plan.id}, {problem} on this machine: mount its disk, and run "
        "the share again",
        may_pass=True,  # on another machine, or with its disk: a scheduler shall repeat the share
    )


def _is_empty_folder(path: str) -> bool:
    with suppress(OSError), os.scandir(path) as entries:
        return next(entries, None) is None
    return False


def _shared_out(settings: Settings, count: int) -> Settings:
    """Return the settings of one of several shares: the rates are for all of them together."""
    bandwidth = settings.bandwidth and max(1, settings.bandwidth // count)
    return settings.model_copy(update={"rate": settings.rate and settings.rate / count, "bandwidth": bandwidth})


def _refuse_others(own: Settings, plan: Plan) -> None:
    """Refuse settings that were given and would make other overlays than the plan's.

    Raises SettingsError, which names them.
    """
    expected, given = plan.shaping | plan.choice, own.model_dump(mode="json")
    names = own.model_fields_set & expected.keys() - {"s3"}
    pairs = {name: (given[name], expected[name]) for name in names}
    headers = S3Settings().model_dump(mode="json") | expected["s3"]
    pairs |= {f"s3.{name}": (given["s3"][name], headers[name]) for name in own.s3.model_fields_set & HEADERS}
    if others := [f"{name} is {found!r}, not {value!r}" for name, (found, value) in pairs.items() if found != value]:
        raise SettingsError(
            f"{', '.join(sorted(others))} as in the plan {plan.id}: leave it out, or make another plan with it"
        )
