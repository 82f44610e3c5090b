"""Runs the parts of a plan on a Ray cluster: a task for each part, and nothing else of Ray."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from contextlib import aclosing, asynccontextmanager
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING

from anyio import CancelScope, CapacityLimiter, to_thread

import async_maps.errors
from async_maps.concurrency.loop import fastest_loop
from async_maps.concurrency.tasks import in_thread
from async_maps.errors import (
    AsyncMapsError,
    PlanError,
    SettingsError,
    StoreError,
    WorkerError,
    naming_shortages,
    require_extra,
)
from async_maps.masking import mask
from async_maps.settings import Settings
from async_maps.shares.engine import LocalEngine, Work
from async_maps.shares.part import PartDone, PartFailed, PartStopped

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from typing import Any

    from async_maps.shares.engine import PartOutcome

_RETRIES = 2
"""The starts of a part after the first one: a part whose process always dies must not keep the others waiting."""
_WAITING = 2
"""Parts for each place of the cluster: one runs, and the next one is there when it ends, or asks for another node."""
_ANSWER_S = 10.0
_END_S = 10.0
"""The time for cancelled parts to end, before their processes are killed."""
_OF_ALL = (PlanError, SettingsError, StoreError)
"""The errors of a part that all parts would meet."""
VARIABLES = {
    # Without it, a task that is killed for its memory is started for ever.
    "RAY_task_oom_retries": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


class RayEngine:
    """Runs each part in a task of a Ray cluster.

    The arguments and the result of a task are texts in JSON. Ray itself uses pickle between its processes: use a
    cluster only if you trust all who can reach it. Each node needs this package and credentials of its own.

    Args:
        address: the address of the cluster, as for ``ray.init``: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``. None
            is ``RAY_ADDRESS``; without that variable, a cluster of this machine, which ends with the run.

    Raises:
        MissingExtraError: Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        for name, value in VARIABLES.items():
            os.environ.setdefault(name, value)
        with require_extra("the engine ray", "ray"):
            self._ray: Any = import_module("ray")
        self._address = address
        self._drained = asyncio.Event()

    def drain(self) -> None:
        """Start no further part, and cancel those that run; they are not committed."""
        self._drained.set()

    async def run(
        self, work: Work, parts: AsyncGenerator[int, None], max_concurrent: int | None = None
    ) -> AsyncGenerator[PartOutcome, None]:
        """Run parts, as :meth:`Engine.run`; by default as many at a time as the cluster has CPUs.

        A part whose process dies is started again, at most twice; then it is a PartFailed, and the others go on.

        Raises:
            PlanError, SettingsError, StoreError: a part has met it, and all others would; they are cancelled.
            WorkerError: the cluster cannot be used.
        """
        async with _connected(self._ray, self._address):
            tasks = await _Tasks.on(self._ray, work, max_concurrent)
            draining = asyncio.ensure_future(self._drained.wait())
            try:
                await tasks.fill(parts)
                while tasks.running and not draining.done():
                    waited: set[asyncio.Future[Any]] = {*tasks.running, draining}
                    await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                    for outcome in tasks.ended():
                        yield outcome
                    if not draining.done():
                        await tasks.fill(parts)
                await tasks.cancel()
                for outcome in tasks.ended():
                    yield outcome
            finally:
                draining.cancel()
                with CancelScope(shield=True):
                    await tasks.cancel()


class _Tasks:
    """The tasks of parts that run, or wait for a place.

    Args:
        task: the remote function.
        work: what it gets besides the number of a part.
        most: the maximum number of tasks.

    Attributes:
        running: the result of each task, with its part and Ray's reference to it.
    """

    def __init__(self, ray: Any, task: Any, work: str, most: int) -> None:
        self._ray = ray
        self._task = task
        self._work = work
        self._most = most
        self.running: dict[asyncio.Future[str], tuple[int, object]] = {}

    @classmethod
    async def on(cls, ray: Any, work: Work, max_concurrent: int | None) -> _Tasks:
        """Return tasks that fit the cluster."""
        cpus, places = await to_thread.run_sync(_fitting, ray, work.settings)
        places = min(places, max_concurrent or places)
        task = ray.remote(num_cpus=cpus, max_retries=_RETRIES)(_run_part)
        return cls(ray, task, _described(work, places), max_concurrent or places * _WAITING)

    async def fill(self, parts: AsyncGenerator[int, None]) -> None:
        """Start tasks until there are as many as may run."""
        while len(self.running) < self._most and (part := await anext(parts, None)) is not None:
            reference = await to_thread.run_sync(self._task.remote, self._work, part)
            self.running[asyncio.wrap_future(reference.future())] = part, reference

    def ended(self) -> Iterator[PartOutcome]:
        """Remove the tasks that have ended, and yield their outcomes.

        Raises PlanError, SettingsError or StoreError if all others would meet it.
        """
        for future in [future for future in self.running if future.done()]:
            part, _ = self.running.pop(future)
            yield _outcome(self._ray, part, future)

    async def cancel(self) -> None:
        """Cancel all tasks, and wait until they have ended."""
        for is_forced in (False, True):
            left = {future: reference for future, (_, reference) in self.running.items() if not future.done()}
            for reference in left.values():
                await to_thread.run_sync(partial(self._ray.cancel, reference, force=is_forced))
            if left:
                await asyncio.wait(left, timeout=_END_S)
        for future in self.running:
            if future.done():
                future.exception()  # so that asyncio does not log it


@asynccontextmanager
async def _connected(ray: Any, address: str | None) -> AsyncIterator[None]:
    """Be connected to the cluster; a connection that the caller has is used, and kept."""
    if ray.is_initialized():
        yield
        return
    await _check_answers(address or os.environ.get("RAY_ADDRESS", ""))
    connect = partial(ray.init, address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    # It would print the deaths of processes on standard output, which is for the result of the command.
    ray._private.worker._worker_logs_enabled = False
    try:
        try:
            await in_thread(connect, limiter=CapacityLimiter(1), interrupt=lambda: None)
        except (OSError, RuntimeError, ValueError) as error:
            place = "a Ray cluster on this machine" if address is None else f"the Ray cluster {address!r}"
            raise WorkerError(f"{place} cannot be used: {error}") from error
        yield
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(ray.shutdown)


async def _check_answers(address: str) -> None:
    """Check that something listens at an address with a port: Ray would try for minutes, and not hear a signal.

    Raises WorkerError.
    """
    found = re.fullmatch(r"(?:ray://)?\[?([^\]/]+)\]?:(\d+)", address)
    if found is None:
        return
    try:
        async with asyncio.timeout(_ANSWER_S):
            _, writer = await asyncio.open_connection(found[1], int(found[2]))
    except (OSError, TimeoutError) as error:
        raise WorkerError(
            f"no Ray cluster answers at {address!r}: {str(error) or 'timed out'}; start it, or correct the address"
        ) from error
    writer.close()


def _fitting(ray: Any, settings: Settings) -> tuple[int, int]:
    """Return the CPUs of a task, one for each process, and the number of tasks that run at a time. Blocks."""
    wanted = max(1, settings.workers if isinstance(settings.workers, int) else 1)
    wanted *= settings.processes if isinstance(settings.processes, int) else 1
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    # A task that needs more than the largest node has would never run.
    cpus = min(wanted, max(nodes, default=0) or wanted)
    return cpus, max(1, sum(found // cpus for found in nodes))


def _described(work: Work, places: int) -> str:
    """Return the work of each task as JSON: its settings are those of a process with one CPU, and a share of limits."""
    settings = work.settings
    fitting: dict[str, object] = {"processes": 1, "workers": 0, "encode_threads": 2}
    changes = {name: value for name, value in fitting.items() if getattr(settings, name) == "auto"}
    if settings.rate is not None:
        changes["rate"] = settings.rate / places
    if settings.bandwidth is not None:
        changes["bandwidth"] = max(1, settings.bandwidth // places)
    plain = settings.model_dump(mode="json") | changes
    return json.dumps({"plan": work.plan, "settings": plain, "task": work.task})


def _run_part(work: str, part: int) -> str:
    """Run a part in a process of Ray; return the outcome as JSON."""
    try:
        with naming_shortages(), asyncio.Runner(loop_factory=fastest_loop()) as runner:
            return json.dumps(runner.run(_run(json.loads(work), part)))
    except AsyncMapsError as error:
        kind = next(kind.__name__ for kind in type(error).__mro__ if hasattr(async_maps.errors, kind.__name__))
        return json.dumps({"error": kind, "message": str(error), "may_pass": error.may_pass})


async def _run(work: dict[str, Any], part: int) -> dict[str, Any]:
    async def only() -> AsyncGenerator[int, None]:
        yield part

    found = Work(work["plan"], Settings(**work["settings"]), work["task"])
    async with aclosing(LocalEngine().run(found, only(), 1)) as outcomes:
        outcome = await anext(outcomes)
    return {type(outcome).__name__: outcome._asdict()}


def _outcome(ray: Any, part: int, future: asyncio.Future[str]) -> PartOutcome:
    """Return the outcome of a part.

    Raises PlanError, SettingsError or StoreError if all others would meet it.
    """
    error = future.exception()
    if error is not None:
        is_cancelled = isinstance(error, ray.exceptions.TaskCancelledError)
        return PartStopped(part) if is_cancelled else PartFailed(part, _reason(ray, error))
    found = json.loads(future.result())
    for outcome in (PartDone, PartStopped, PartFailed):
        if outcome.__name__ in found:
            return outcome(**found[outcome.__name__])
    kind = getattr(async_maps.errors, found["error"])
    if issubclass(kind, _OF_ALL):
        raise kind(found["message"], may_pass=found["may_pass"])
    return PartFailed(part, found["message"])


def _reason(ray: Any, error: BaseException) -> str:
    """Return why Ray has no result of a task, in one sentence."""
    if isinstance(error, ray.exceptions.WorkerCrashedError):
        return f"its process died {1 + _RETRIES} times, perhaps of one of its maps"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "Ray killed its process, as the memory of its node was short: use nodes with more memory for each CPU"
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, ray.exceptions.RayTaskError):  # with a traceback
        return mask(lines[-1])
    return mask(f"{type(error).__name__}: {lines[0]}")
