"""The stages, joined: the way of a map from its job to its outcome. The only file that sees every stage.

::

                 fetch (threads; maps in S3)
                   |
    source --[jobs]--> colorize --[bitmaps]--> encode --[pngs]--> upload --[outcomes]--> manifest
    thread             processes               threads            asyncio                thread

Every arrow is bounded in items (a stream's buffer) and in bytes (a budget, or the arena). A stage's concurrency is the
number of its tasks; each waits for its input, works, and waits for room for its output. Closing the sending end ends a
stage. Everything here runs on the event loop and hands its work to where the diagram says.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, create_memory_object_stream, create_task_group

from async_maps.concurrency.streams import ByteBudget, send
from async_maps.errors import PipelineFullError
from async_maps.filesystems.filesystem import Filesystems, is_remote
from async_maps.sources.formats.registry import Readers
from async_maps.stages.colorize import ColorizeStage
from async_maps.stages.encode import Encoding, encode_bitmap, encode_stage
from async_maps.stages.fetch import fetch_stage
from async_maps.stages.items import Bitmap, Job, Png
from async_maps.stages.meters import Meter, StageStatistics
from async_maps.stages.rate_limiter import RateLimiter
from async_maps.stages.upload import Uploading, upload_stage

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from async_maps.concurrency.streams import Lease
    from async_maps.errors import AsyncMapsError
    from async_maps.outcomes import Outcome
    from async_maps.render.ranges import ValueRange
    from async_maps.settings import Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.stores import AddressedStore
    from async_maps.workers.arena import Arena
    from async_maps.workers.pool import Worker
    from async_maps.workers.worker import Recipe


class Stages:
    """Everything between a job and its outcome. Its caller opens and closes what it is given."""

    def __init__(
        self, settings: Settings, store: AddressedStore, arena: Arena, recipe: Recipe, workers: Sequence[Worker]
    ) -> None:
        self.store = store
        self._settings = settings
        self._arena = arena
        self._recipe = recipe
        self._workers = workers
        threads = settings.encode_thread_count
        self._remote, self._remote_out = create_memory_object_stream[Job](settings.prefetch)
        self._jobs, self._jobs_out = create_memory_object_stream[Job](settings.chunk_maps)
        self._bitmaps, self._bitmaps_out = create_memory_object_stream[list[Bitmap]](2 * threads)
        self._pngs, self._pngs_out = create_memory_object_stream[Png](settings.concurrency)
        self._array_bytes = ByteBudget(settings.queue_bytes)
        self._png_bytes = ByteBudget(settings.queue_bytes)
        self._fetching = Meter(settings.prefetch)
        self._colorizing = Meter(len(workers))
        self._encoding = Meter(threads)
        self._uploading = Meter(settings.concurrency)
        self.reserved: set[Lease] = set()
        """What was taken by :meth:`reserve`, until the map is submitted or withdrawn."""
        self.rate_limiter = RateLimiter(
            settings.concurrency, max_attempts=settings.s3.max_attempts, give_up_s=settings.s3.give_up_s
        )

    async def run(self, running: asyncio.Event) -> None:
        """Run the stages until :meth:`close` and the last job. Jobs can come once it has set ``running``."""
        settings, recipe = self._settings, self._recipe
        limit, template = settings.max_pixels, settings.key_template
        colorize = ColorizeStage(
            self._arena,
            chunk_maps=settings.chunk_maps,
            chunk_bytes=settings.chunk_bytes,
            channels=recipe.channels,
            meter=self._colorizing,
        )
        table = None if recipe.png == "gray" else recipe.table
        encoding = Encoding(partial(encode_bitmap, table=table, level=settings.png_level), template.needs_digest)
        uploading = Uploading(self.store, template, self.rate_limiter, settings.if_exists)
        fetchers, encoders = CapacityLimiter(settings.prefetch), CapacityLimiter(self._encoding.workers)
        # The first to be entered is the last to be closed: the jobs' end, when the stages are through or cancelled.
        with Filesystems(settings.s3) as filesystems, Readers(filesystems, limit) as shared, self._remote, self._jobs:
            async with create_task_group() as stages, self._bitmaps, self._pngs:
                for _ in range(settings.prefetch):
                    readers = (Readers(filesystems, limit), shared)
                    stages.start_soon(
                        fetch_stage, self._remote_out.clone(), self._jobs.clone(), readers, fetchers, self._fetching
                    )
                for worker in self._workers:
                    stages.start_soon(colorize.run, worker, self._jobs_out.clone(), self._bitmaps.clone())
                for _ in range(self._encoding.workers):
                    stages.start_soon(
                        encode_stage,
                        self._bitmaps_out.clone(),
                        self._pngs.clone(),
                        encoding,
                        (encoders, self._png_bytes),
                        self._encoding,
                    )
                for _ in range(settings.concurrency):
                    stages.start_soon(upload_stage, self._pngs_out.clone(), uploading, self._uploading)
                for end in (self._remote_out, self._jobs_out, self._bitmaps_out, self._pngs_out):
                    end.close()
                running.set()

    def reserve(self, size: int) -> Lease:
        """Take room for one map in memory without waiting: a place among the jobs, and the bytes of its array.

        Raises PipelineFullError if there is no room, or others wait for it.
        """
        jobs, arrays = self._jobs.statistics(), self._array_bytes
        taken = jobs.current_buffer_used + len(self.reserved)
        if others := arrays.waiting + jobs.tasks_waiting_send:
            what = f"there is a line for room, {others:,} long"
        elif taken >= jobs.max_buffer_size:
            what = f"{taken:,} maps wait to be colorized, as many as chunk_maps allows"
        elif (lease := arrays.acquire_nowait(size)) is None:
            what = f"{arrays.held:,} bytes of arrays wait, and queue_bytes = {arrays.limit:,} takes no {size:,} more"
        else:
            self.reserved.add(lease)
            return lease
        raise PipelineFullError(f"the pipeline is full: {what}; try again later")

    def withdraw(self, lease: Lease) -> None:
        """Give back what was reserved for a map, if it was not submitted."""
        if lease in self.reserved:
            self.reserved.remove(lease)
            lease.release()

    async def submit(
        self,
        map_: ActivationMap,
        settle: Callable[[Outcome | AsyncMapsError], None],
        value_range: ValueRange,
        lease: Lease | None = None,
    ) -> None:
        """Let one map in, when there is room, or with what was reserved for it; ``settle`` gets its outcome.

        Raises:
            ClosedResourceError: :meth:`close` was called.
            BrokenResourceError: the stages have ended otherwise.
        """
        stream = self._jobs
        if lease is not None:
            self.reserved.discard(lease)
            lease.resize(map_.max_bytes)
        elif map_.array is not None:
            lease = await self._array_bytes.acquire(map_.array.nbytes)
        elif map_.path is not None and is_remote(map_.path):
            # A header can claim anything: what is larger than the whole budget is read when nothing else is held.
            lease = await self._array_bytes.acquire(min(map_.max_bytes, self._array_bytes.limit))
            stream = self._remote
        try:
            await send(stream, Job(map_, settle, value_range, lease))
        except BaseException:
            if lease is not None:
                lease.release()
            raise

    def close(self) -> None:
        """No job will be submitted any more: the stages end when those that were are through."""
        self._remote.close()
        self._jobs.close()

    def abandon(self) -> None:
        """The stages are gone: end every wait for room."""
        self._array_bytes.close()

    @property
    def waiting(self) -> int:
        """Maps that wait for room outside, in the hands of their callers."""
        return self._array_bytes.waiting

    def statistics(self) -> dict[str, StageStatistics]:
        """Each stage at this moment."""
        arrays, bitmaps, pngs = self._array_bytes, self._arena, self._png_bytes
        stages = {
            "fetch": (self._fetching, self._remote_out, 0.0),
            "colorize": (self._colorizing, self._jobs_out, arrays.held / arrays.limit),
            "encode": (self._encoding, self._bitmaps_out, bitmaps.held / bitmaps.size),
            "upload": (self._uploading, self._pngs_out, pngs.held / pngs.limit),
        }
        found = {}
        for name, (meter, incoming, in_bytes) in stages.items():
            queue = incoming.statistics()
            fullness = min(1.0, max(queue.current_buffer_used / queue.max_buffer_size, in_bytes))
            found[name] = StageStatistics(meter.workers, meter.busy_s, meter.maps, fullness)
        return found
