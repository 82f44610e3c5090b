"""Runs the parts of a plan on a Ray cluster: a task for each part, and nothing else of Ray."""

from __future__ import annotations

import asyncio
import json
import os
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
from async_maps.settings import Settings
from async_maps.shares.engine import LocalEngine, Work
from async_maps.shares.part import PartDone, PartFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from typing import Any

    from async_maps.shares.engine import PartOutcome

_RETRIES = 2
"""The starts of a part after the first one: a part whose process always dies must not keep the others waiting."""
_WAITING = 2
"""Parts for each place of the cluster: one runs, and the next one is there when it ends, or asks for another node."""
_END_S = 10.0
"""The time for cancelled parts to end, before their processes are killed."""
_OF_ALL = (PlanError, SettingsError, StoreError)
"""The errors of a part that all parts would meet."""
_VARIABLES = {
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
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address

    async def run(
        self, work: Work, parts: AsyncGenerator[int, None], max_concurrent: int | None = None
    ) -> AsyncGenerator[PartOutcome, None]:
        """Run parts, as :meth:`Engine.run`; by default as many at a time as the cluster has CPUs.

        A part whose process dies is started again, at most twice; then it is a PartFailed, and the others go on.

        Raises:
            PlanError, SettingsError, StoreError: a part has met it, and all others would; they are cancelled.
            WorkerError: the cluster cannot be used.
            MissingExtraError: Ray is not installed.
        """
        async with _connected(self._address) as ray:
            places = await _places(ray, work.settings)
            if max_concurrent is not None:
                places = min(places, max_concurrent)
            most = places * _WAITING if max_concurrent is None else max_concurrent
            cpus = await _cpus(ray, work.settings)
            task = ray.remote(num_cpus=cpus, max_retries=_RETRIES)(_run_part)
            described = _described(work, places)
            running: dict[asyncio.Future[str], tuple[int, object]] = {}

            async def fill() -> None:
                while len(running) < most and (part := await anext(parts, None)) is not None:
                    reference = await to_thread.run_sync(task.remote, described, part)
                    running[asyncio.wrap_future(reference.future())] = part, reference

            try:
                await fill()
                while running:
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for future in done:
                        part, _ = running.pop(future)
                        yield _outcome(ray, part, future)
                    await fill()
            finally:
                with CancelScope(shield=True):
                    await _cancel(ray, running)


@asynccontextmanager
async def _connected(address: str | None) -> AsyncIterator[Any]:
    """Connect to the cluster, and yield Ray; a connection that the caller has is used, and kept."""
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    with require_extra("the engine ray", "ray"):
        ray = import_module("ray")
    if ray.is_initialized():
        yield ray
        return
    connect = partial(ray.init, address, include_dashboard=False, log_to_driver=False, logging_level="error")
    # It would print the deaths of processes on standard output, which is for the result of the command.
    ray._private.worker._worker_logs_enabled = False
    try:
        try:
            await in_thread(connect, limiter=CapacityLimiter(1), interrupt=lambda: None)
        except (OSError, RuntimeError, ValueError) as error:
            place = "a Ray cluster on this machine" if address is None else f"the Ray cluster {address!r}"
            raise WorkerError(f"{place} cannot be used: {error}") from error
        yield ray
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(ray.shutdown)


async def _cpus(ray: Any, settings: Settings) -> int:
    """Return the CPUs of a task: one for each process, but no more than the largest node has, or it would never run."""
    wanted = max(1, settings.workers if isinstance(settings.workers, int) else 1)
    wanted *= settings.processes if isinstance(settings.processes, int) else 1
    nodes = await to_thread.run_sync(ray.nodes)
    largest = max((int(node["Resources"].get("CPU", 0)) for node in nodes if node["Alive"]), default=0)
    return min(wanted, largest or wanted)


async def _places(ray: Any, settings: Settings) -> int:
    """Return the number of tasks that the cluster can run at a time."""
    found = await to_thread.run_sync(ray.cluster_resources)
    return max(1, int(found.get("CPU", 1)) // await _cpus(ray, settings))


def _described(work: Work, places: int) -> str:
    """Return the work of each task as JSON: its settings are those of a process with one CPU, and a share of limits."""
    settings = work.settings
    fitting: dict[str, object] = {"processes": 1, "workers": 0, "encode_threads": 2}
    changes = {name: value for name, value in fitting.items() if getattr(settings, name) == "auto"}
    if settings.rate is not None:
        changes["rate"] = settings.rate / places
    if settings.bandwidth is not None:
        changes["bandwidth"] = max(1, settings.bandwidth // places)
    return json.dumps({"plan": work.plan, "settings": settings.model_dump(mode="json") | changes})


def _run_part(work: str, part: int) -> str:
    """Run a part in a process of Ray; return the outcome as JSON."""
    try:
        with naming_shortages(), asyncio.Runner(loop_factory=fastest_loop()) as runner:
            return json.dumps({"done": runner.run(_run(json.loads(work), part))._asdict()})
    except AsyncMapsError as error:
        kind = next(kind.__name__ for kind in type(error).__mro__ if hasattr(async_maps.errors, kind.__name__))
        return json.dumps({"error": kind, "message": str(error), "may_pass": error.may_pass})


async def _run(work: dict[str, Any], part: int) -> PartDone:
    async def only() -> AsyncGenerator[int, None]:
        yield part

    found = Work(work["plan"], Settings(**work["settings"]))
    async with aclosing(LocalEngine().run(found, only(), 1)) as outcomes:
        outcome = await anext(outcomes)
    assert isinstance(outcome, PartDone)  # noqa: S101  # a part fails only on other machines
    return outcome


def _outcome(ray: Any, part: int, future: asyncio.Future[str]) -> PartOutcome:
    """Return the outcome of a part.

    Raises PlanError, SettingsError or StoreError if all others would meet it.
    """
    try:
        found = json.loads(future.result())
    except ray.exceptions.WorkerCrashedError:
        return PartFailed(part, f"its process died {1 + _RETRIES} times, perhaps of one of its maps")
    except ray.exceptions.RayError as error:
        return PartFailed(part, str(error).strip().splitlines()[-1])
    if "done" in found:
        return PartDone(**found["done"])
    kind = getattr(async_maps.errors, found["error"])
    if issubclass(kind, _OF_ALL):
        raise kind(found["message"], may_pass=found["may_pass"])
    return PartFailed(part, found["message"])


async def _cancel(ray: Any, running: dict[asyncio.Future[str], tuple[int, object]]) -> None:
    """Cancel parts, and wait until they have ended."""
    for is_forced in (False, True):
        left = {future: reference for future, (_, reference) in running.items() if not future.done()}
        if left:
            for reference in left.values():
                await to_thread.run_sync(partial(ray.cancel, reference, force=is_forced))
            await asyncio.wait(left, timeout=_END_S)
    for future in running:
        if future.done() and not future.cancelled():
            future.exception()  # so that asyncio does not log it
