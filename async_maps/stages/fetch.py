"""The fetch stage: reads maps that lie in S3 concurrently, so that the workers never wait for a round trip.

The reading is done in threads; they wait for the network, and share one client.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from anyio import to_thread

from async_maps.render.quantize import map_shape
from async_maps.sources.formats.registry import shares_reads
from async_maps.workers.worker import Failed

if TYPE_CHECKING:
    from typing import Any

    from anyio import CapacityLimiter
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
    from numpy.typing import NDArray

    from async_maps.sources.formats.registry import Readers
    from async_maps.stages.items import Job
    from async_maps.stages.meters import Meter


async def fetch_stage(
    remote: MemoryObjectReceiveStream[Job],
    jobs: MemoryObjectSendStream[Job],
    readers: tuple[Readers, Readers],
    threads: CapacityLimiter,
    meter: Meter,
) -> None:
    """One of the concurrent fetchers: takes a map, which has a lease for its array, reads it, sends it on as an array.

    Cancelled, it still waits for its thread: S3's answer, or the end of its patience. The end of the maps ends the
    stage, which closes its jobs, and its own readers, the first; the second are shared by all fetchers.
    """
    async with remote, jobs:
        try:
            async for job in remote:
                started = perf_counter()
                result = await to_thread.run_sync(_fetch, readers, job, limiter=threads)
                meter.worked(perf_counter() - started, 1)
                if isinstance(result, Failed):
                    if job.lease is not None:
                        job.lease.release()
                    job.fail(*result)
                else:
                    await jobs.send(replace(job, map=replace(job.map, array=result)))
                # While it waits for the next one, it must not keep an array that nobody counts any more.
                del job, result
        finally:
            readers[0].close()


def _fetch(readers: tuple[Readers, Readers], job: Job) -> NDArray[Any] | Failed:
    """Read a map. Runs in a thread."""
    assert job.map.path is not None  # noqa: S101  # remote
    try:
        array = readers[shares_reads(job.map)].read(job.map.path, job.map.part)
        map_shape(array, job.value_range)
    except Exception as error:  # noqa: BLE001  # one map's failure is data, and a hostile file provokes anything
        return Failed.by(error)
    return array
