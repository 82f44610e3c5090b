"""The fetch stage: reads maps from S3 concurrently, in threads that share one client."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from async_maps.concurrency.tasks import in_thread
from async_maps.filesystems.filesystem import UnavailableError
from async_maps.sources.formats.registry import shares_reads
from async_maps.sources.layouts import map_size
from async_maps.workers.worker import Failed, read_patiently

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from anyio import CapacityLimiter
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from numpy.typing import NDArray

    from async_maps.sources.formats.registry import Readers
    from async_maps.stages.concurrency_limit import ConcurrencyLimit
    from async_maps.stages.items import Job
    from async_maps.stages.meters import Meter


async def fetch_stage(
    remote: MemoryObjectReceiveStream[Job],
    jobs: MemoryObjectSendStream[Job],
    readers: tuple[Readers, Readers],
    threads: tuple[CapacityLimiter, Callable[[], object]],
    measured: tuple[ConcurrencyLimit, Meter],
) -> None:
    """Run one of the concurrent fetchers until the end of the maps: read each map, and send it on as an array.

    Each job has a lease for its array. ``readers`` are this fetcher's, which it closes, and those that all share.
    ``threads`` are their limiter, and a function that ends all requests, for a cancellation. ``measured`` finds
    out whether more fetchers would be faster, and counts.
    """
    (limiter, interrupt), (limit, meter) = threads, measured
    async with remote, jobs:
        try:
            async for job in remote:
                started = perf_counter()
                limit.in_flight += 1
                result = await in_thread(partial(_fetch, readers, job), limiter=limiter, interrupt=interrupt)
                meter.worked(seconds := perf_counter() - started, 1)
                limit.in_flight -= 1
                limit.succeeded(seconds, perf_counter())
                if isinstance(result, Failed):
                    if job.lease is not None:
                        job.lease.release()
                    result.raise_shortage()
                    job.fail(result.stage, result.reason)
                else:
                    await jobs.send(replace(job, map=replace(job.map, array=result)))
                # Do not keep the array in memory while waiting for the next one: its lease may be released.
                del job, result
        finally:
            readers[0].close()


def _fetch(readers: tuple[Readers, Readers], job: Job) -> NDArray[Any] | Failed:
    assert job.map.path is not None  # noqa: S101  # remote
    try:
        chosen = readers[shares_reads(job.map)]
        array = read_patiently(chosen, job.map.path, job.map.part, job.map.max_bytes)
        map_size(array, job.value_range, readers[0].channels)
    except UnavailableError:
        raise
    except Exception as error:  # noqa: BLE001  # one map's failure is data; a malicious file can cause any error
        return Failed.by(error)
    return array
