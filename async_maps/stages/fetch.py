"""The fetch stage: reads maps from buckets concurrently, in threads that share one client."""

from __future__ import annotations

import asyncio
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from async_maps.concurrency.tasks import in_thread
from async_maps.errors import ObjectError, SourceError, StoreError, TransientError
from async_maps.filesystems.addresses import parse_address
from async_maps.filesystems.filesystem import UnavailableError, verdict_of
from async_maps.filesystems.verdict import UnjudgedError, Verdict, store_error
from async_maps.sources.formats.registry import shares_reads
from async_maps.sources.layouts import map_size
from async_maps.stages.control import Control
from async_maps.stages.judge import Case
from async_maps.stages.rate_limiter import backoff_s
from async_maps.workers.worker import Failed, read_patiently

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from anyio import CapacityLimiter
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from numpy.typing import NDArray

    from async_maps.concurrency.concurrency_limit import ConcurrencyLimit
    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.sources.formats.registry import Readers
    from async_maps.stages.items import Job
    from async_maps.stages.judge import Judge
    from async_maps.stages.meters import Meter


class _Unread(NamedTuple):
    """A map that was not read by the fault of the store, or perhaps of its object."""

    verdict: Verdict
    failed: Failed


class ReadControl(Control):
    """Asks for the object that was read last, where no other object shows whether the store of the source is down."""

    def __init__(self, judge: Judge, filesystems: Filesystems, limiter: CapacityLimiter, uploads: Control) -> None:
        super().__init__(judge, self._read_byte, self._pass, "the store of the source has answered no request")
        self.judge = judge
        self.maps, self.is_reading, self.has_others = uploads.maps, uploads.is_reading, uploads.has_others
        self._filesystems = filesystems
        self._limiter = limiter

    async def _read_byte(self, path: str, _: bytes) -> None:
        address = parse_address(path)
        found = partial(self._filesystems.at(address).get, address, 0, 1)
        try:
            await in_thread(found, limiter=self._limiter, interrupt=self._filesystems.close)
        except FileNotFoundError as error:
            # It is a folder, such as a Zarr hierarchy, or was deleted.
            raise ObjectError(str(error)) from error
        except (SourceError, UnavailableError) as error:
            verdict = verdict_of(error)
            raise (
                StoreError(str(error), may_pass=error.may_pass) if verdict is None else store_error(path, verdict)
            ) from error

    async def _pass(self) -> None:
        """The listing has shown that the bucket is there."""


async def fetch_stage(
    remote: MemoryObjectReceiveStream[Job],
    jobs: MemoryObjectSendStream[Job],
    readers: tuple[Readers, Readers],
    threads: tuple[CapacityLimiter, Callable[[], object]],
    measured: tuple[ConcurrencyLimit, Meter, ReadControl],
) -> None:
    """Run one of the concurrent fetchers until the end of the maps: read each map, and send it on as an array.

    Each job has a lease for its array. ``readers`` are this fetcher's, which it closes, and those that all share.
    ``threads`` are their limiter, and a function that ends all requests, for a cancellation. ``measured`` finds
    out whether more fetchers would be faster, counts, and finds out whose fault a failure is.
    """
    (limiter, interrupt), (limit, meter, control) = threads, measured

    async def fetch(job: Job) -> NDArray[Any] | Failed | _Unread:
        started = perf_counter()
        limit.in_flight += 1
        try:
            return await in_thread(partial(_fetch, readers, job), limiter=limiter, interrupt=interrupt)
        finally:
            limit.in_flight -= 1
            limit.succeeded(perf_counter() - started, perf_counter())

    async with remote, jobs:
        try:
            async for job in remote:
                started = perf_counter()
                result = await _judged(job, fetch, control)
                meter.worked(perf_counter() - started, int(not isinstance(result, StoreError)))
                if isinstance(result, Failed | StoreError):
                    if job.lease is not None:
                        job.lease.release()
                    if isinstance(result, Failed):
                        result.raise_shortage()
                        job.fail(result.stage, result.reason)
                    else:
                        job.settle(result)
                else:
                    job.map.array = result
                    await jobs.send(job)
                # Do not keep the array in memory while waiting for the next one: its lease may be released.
                del job, result
        finally:
            readers[0].close()


async def _judged(
    job: Job, fetch: Callable[[Job], Awaitable[NDArray[Any] | Failed | _Unread]], control: ReadControl
) -> NDArray[Any] | Failed | StoreError:
    """Read a map as often as it takes to find out whose fault its failure is."""
    judge, case, path = control.judge, Case(), job.map.path or ""
    failed = Failed("read", "")
    try:
        while True:
            judge.begin(case)
            result = await fetch(job)
            if not isinstance(result, _Unread):
                judge.accepted(case)
                if not isinstance(result, Failed):
                    control.keep(path, b"")
                return result
            verdict, failed = result
            error = store_error(path, verdict)
            if isinstance(error, TransientError):
                await control.rule(case, error)
                await asyncio.sleep(backoff_s(case.attempts))
                if judge.needs_control(case):
                    await control.ask(case)
            elif isinstance(error, UnjudgedError):
                judge.refused(case, verdict)
                await control.hear(case, error)
            else:
                return failed if isinstance(error, ObjectError) else error
    except ObjectError:
        return failed
    except StoreError as error:
        return error
    finally:
        judge.close(case)


def _fetch(readers: tuple[Readers, Readers], job: Job) -> NDArray[Any] | Failed | _Unread:
    assert job.map.path is not None  # noqa: S101  # remote
    try:
        chosen = readers[shares_reads(job.map)]
        array = read_patiently(chosen.read, job.map.path, job.map.part, job.map.max_bytes)
        map_size(array, job.value_range, readers[0].channels)
    except UnavailableError:
        raise
    except Exception as error:  # noqa: BLE001  # one map's failure is data; a malicious file can cause any error
        verdict, failed = verdict_of(error), Failed.by(error)
        return failed if verdict is None else _Unread(verdict, failed)
    return array
