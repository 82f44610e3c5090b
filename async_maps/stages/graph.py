"""The graph of the stages: the path of a map from its job to its outcome.

::

                 fetch (threads; maps in buckets)
                   |
    source --[jobs]--> colorize --[bitmaps]--> encode --[pngs]--> upload --[outcomes]--> manifest
    thread             processes               threads            asyncio                thread

Every arrow is bounded in items (a stream's buffer) and in bytes (a budget, or the arena). A stage runs one task for
each concurrent item. The stages that wait for a service start more tasks while that makes them faster. Closing the
sending end of a stream ends the stage that receives from it. Everything here runs on the event loop; the work is done
where the diagram says.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, ClosedResourceError, create_memory_object_stream, create_task_group, to_thread

from async_maps.concurrency.concurrency_limit import ConcurrencyLimit
from async_maps.concurrency.streams import ByteBudget, send
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.filesystem import Filesystems
from async_maps.sources.isolation import DecoderProcess, IsolatedReaders
from async_maps.stages.colorize import ColorizeStage
from async_maps.stages.control import Control, Earlier
from async_maps.stages.encode import Encoding, encode_bitmap, encode_stage
from async_maps.stages.fetch import ReadControl, fetch_stage
from async_maps.stages.items import Bitmap, Job, Png
from async_maps.stages.judge import FEW, Judge
from async_maps.stages.meters import LaneStatistics, Meter, StageStatistics
from async_maps.stages.rate_limiter import Pace, RateLimiter, Rates
from async_maps.stages.reservation import Reservation
from async_maps.stages.upload import Uploading, upload_stage
from async_maps.stores import sent_bytes

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from async_maps.errors import AsyncMapsError
    from async_maps.outcomes import Outcome
    from async_maps.render.ranges import ValueRange
    from async_maps.settings import Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.stores import AddressedStore
    from async_maps.workers.arena import Arena
    from async_maps.workers.pool import Worker
    from async_maps.workers.worker import Recipe


WINDOW = 4096
"""The maximum number of one caller's maps that are in flight or have an outcome to collect (about 600 bytes each)."""


class Stages:
    """All stages. The caller opens and closes the store, the arena and the workers.

    Attributes:
        window: the maximum number of one caller's maps that are in flight or have an outcome to collect.
        reads_here: whether this process reads maps in buckets.
        earlier_reads: files that others have read from buckets, for :class:`~async_maps.stages.fetch.ReadControl`.
    """

    window = WINDOW
    reads_here = True

    def __init__(
        self, settings: Settings, store: AddressedStore, arena: Arena, recipe: Recipe, workers: Sequence[Worker]
    ) -> None:
        self.store = store
        self._settings = settings
        self._arena = arena
        self._recipe = recipe
        self._workers = workers
        threads = settings.encode_thread_count
        self._remote, self._remote_out = create_memory_object_stream[Job](settings.first_prefetch)
        self._jobs, self._jobs_out = create_memory_object_stream[Job](settings.chunk_maps)
        self._bitmaps, self._bitmaps_out = create_memory_object_stream[list[Bitmap]](2 * threads)
        self._pngs, self._pngs_out = create_memory_object_stream[Png](settings.first_concurrency)
        self._array_bytes = ByteBudget(settings.queue_size)
        self._png_bytes = ByteBudget(settings.queue_size)
        self._fetching = Meter(0)
        self._colorizing = Meter(len(workers))
        self._encoding = Meter(threads)
        self._uploading = Meter(0)
        self._places = ByteBudget(settings.chunk_maps)
        self._reserving = 0
        self._life_maps: tuple[int, ...] = ()
        self._life_sent = 0
        self._reads = ConcurrencyLimit(settings.first_prefetch, settings.most_prefetch)
        first = settings.first_concurrency
        # Another store may be one that many concurrent calls harm.
        most = settings.most_concurrency if is_remote(store.destination) else first
        self._uploads = ConcurrencyLimit(first, most)
        self.rate_limiter = RateLimiter(self._uploads, Rates(settings.rate or inf, settings.bandwidth or inf))
        max_attempts, give_up_s = settings.s3.max_attempts, settings.s3.give_up_s
        self.judge = Judge(max_attempts=max_attempts, give_up_s=give_up_s)
        self.control = Control(self.judge, self._put_again, store.check)
        self._reading = Judge(max_attempts=max_attempts, give_up_s=give_up_s)
        self.earlier_reads: Earlier | None = None
        self._read_control: ReadControl | None = None

    async def run(self, running: asyncio.Event) -> None:
        """Run the stages until :meth:`close` was called and the last job is done; set ``running`` when they run."""
        settings, recipe = self._settings, self._recipe
        template = settings.key_template
        colorize = ColorizeStage(
            self._arena,
            chunk_maps=settings.chunk_maps,
            chunk_bytes=settings.chunk_size,
            channels=recipe.channels,
            meter=self._colorizing,
        )
        table = None if recipe.png == "gray" else recipe.table
        encoding = Encoding(partial(encode_bitmap, table=table, level=settings.png_level), template.needs_digest)
        uploading = Uploading(self.store, template, self.rate_limiter, self.judge, self.control, settings.if_exists)
        fetchers, encoders = CapacityLimiter(settings.most_prefetch), CapacityLimiter(self._encoding.workers)
        # Entered first, so closed last: the streams of jobs must stay open until the stages have ended.
        with (
            Filesystems(settings.s3) as filesystems,
            DecoderProcess(settings.s3, settings.max_pixels, recipe.reduce) as decoder,
            IsolatedReaders(decoder, filesystems) as shared,
            self._remote,
            self._jobs,
            # More tasks may start.
            self._remote_out,
            self._pngs_out,
        ):
            async with create_task_group() as stages, self._bitmaps, self._pngs:
                looking = CapacityLimiter(1)
                reading = self._read_control = ReadControl(self._reading, filesystems, looking, self.control)
                reading.earlier = self.earlier_reads

                def interrupt() -> None:
                    filesystems.close()
                    decoder.stop()

                def start_fetchers() -> None:
                    for _ in range(self._reads.highest - self._fetching.workers):
                        with suppress(ClosedResourceError):  # the source has ended
                            jobs = self._jobs.clone()
                            readers = (IsolatedReaders(decoder, filesystems), shared)
                            stages.start_soon(
                                fetch_stage,
                                self._remote_out.clone(),
                                jobs,
                                readers,
                                (fetchers, interrupt),
                                (self._reads, self._fetching, reading),
                            )
                            self._fetching.workers += 1

                def start_uploads(spare: int = 0) -> None:
                    more = self._uploads.highest - self._uploading.workers
                    self._uploading.workers += more
                    for _ in range(more + spare):
                        stages.start_soon(upload_stage, self._pngs_out.clone(), uploading, self._uploading)

                start_fetchers()
                start_uploads()
                self._reads.grown, self._uploads.grown = start_fetchers, start_uploads
                # The rate limiter bounds the requests. A few uploads may be held back without stopping the others.
                self.judge.held_back = partial(start_uploads, spare=FEW)
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
                for end in (self._jobs_out, self._bitmaps_out):
                    end.close()
                running.set()
            # Not by the context manager: it waits for the process, on the event loop.
            await to_thread.run_sync(decoder.close, limiter=fetchers)

    async def _put_again(self, key: str, data: bytes) -> None:
        async with self.rate_limiter.turn(len(data)):
            await self.store.put(key, data)

    def reserve_nowait(self, size: int) -> Reservation | str:
        """Take room for arrays without waiting, or return what is full; also if others wait for room."""
        jobs, arrays, places = self._jobs.statistics(), self._array_bytes, self._places
        taken = jobs.current_buffer_used + places.held
        if others := arrays.waiting + places.waiting + jobs.tasks_waiting_send:
            return f"{others:,} other {'maps wait' if others > 1 else 'map waits'} for room"
        if taken >= jobs.max_buffer_size or (place := places.acquire_nowait(1)) is None:
            return f"{taken:,} {'maps wait' if taken > 1 else 'map waits'} to be colorized, the limit of chunk_maps"
        if (lease := arrays.acquire_nowait(size)) is None:
            place.release()
            return f"{arrays.held:,} bytes of arrays wait, and {size:,} more exceed queue_bytes = {arrays.limit:,}"
        return Reservation(lease, place)

    async def reserve(self, size: int) -> Reservation:
        """Wait for room for arrays, and take it; raise BrokenResourceError if the stages end meanwhile."""
        place = await self._places.acquire(1)
        self._reserving += 1
        try:
            return Reservation(await self._array_bytes.acquire(size), place)
        except BaseException:
            place.release()
            raise
        finally:
            self._reserving -= 1

    async def submit(
        self,
        map_: ActivationMap,
        settle: Callable[[Outcome | AsyncMapsError], None],
        value_range: ValueRange,
        reservation: Reservation | None = None,
    ) -> None:
        """Wait for room, unless there is a reservation, and pass the map to the stages.

        Raises:
            ClosedResourceError: :meth:`close` was called.
            BrokenResourceError: the stages have ended for another reason.
        """
        stream, lease = self._jobs, None
        if reservation is not None:
            lease = reservation.array_bytes
            lease.resize(map_.max_bytes)
        elif map_.array is not None:
            lease = await self._array_bytes.acquire(map_.array.nbytes)
            if map_.path is not None:
                # The listing has read it, so the store of the source can be asked for it again.
                self._fetching.worked(0.0, 1)
                if self._read_control is not None:
                    self._read_control.keep(map_.path, b"")
        elif map_.path is not None and is_remote(map_.path):
            # The header may be wrong: a map that seems larger than the whole budget is read when nothing else is held.
            lease = await self._array_bytes.acquire(min(map_.max_bytes, self._array_bytes.limit))
            stream = self._remote
        try:
            await send(stream, Job(map_, settle, value_range, lease))
        except BaseException:
            if lease is not None:
                lease.release()
            raise
        finally:
            if reservation is not None:
                reservation.free_place()

    def close(self) -> None:
        """Accept no more jobs; the stages end when all submitted jobs are done."""
        self._remote.close()
        self._jobs.close()

    def abandon(self) -> None:
        """End every wait for room; called when the stages have ended."""
        self._places.close()
        self._array_bytes.close()

    @property
    def waiting(self) -> int:
        """The number of maps that wait for room and are still held by their callers."""
        return max(0, self._array_bytes.waiting - self._reserving)

    @property
    def waiting_since(self) -> str:
        """The local time since which the store, or that of the source, has not answered; empty if both do."""
        return min(filter(None, (self.judge.waiting_since, self._reading.waiting_since)), default="")

    @property
    def held(self) -> int:
        """The number of maps that are held back until there is evidence whose fault a refusal is."""
        return self.judge.held + self._reading.held

    @property
    def pace(self) -> Pace:
        """How the uploads go now."""
        return self.rate_limiter.pace

    def life(self) -> tuple[object, ...]:
        """Return a value that changes when a map leaves a stage, or when bytes move to the store.

        The bytes count only until all PNGs that wait could have moved once. So a store that takes bytes for ever, and
        stores nothing, shows no life.
        """
        meters = (self._fetching, self._colorizing, self._encoding, self._uploading)
        maps = tuple(meter.maps for meter in meters)
        sent = sent_bytes(self.store)
        if maps != self._life_maps:
            self._life_maps, self._life_sent = maps, sent
        # Twice, for headers.
        return (*maps, min(sent - self._life_sent, 2 * self._png_bytes.held))

    @property
    def lanes(self) -> list[LaneStatistics]:
        """The state of each lane."""
        return []

    def statistics(self) -> dict[str, StageStatistics]:
        """Return the statistics of each stage now."""
        arrays, bitmaps, pngs = self._array_bytes, self._arena, self._png_bytes
        stages = {
            "fetch": (self._fetching, self._remote_out, 0.0),
            "colorize": (self._colorizing, self._jobs_out, arrays.held / arrays.limit),
            "encode": (self._encoding, self._bitmaps_out, bitmaps.held / bitmaps.room),
            "upload": (self._uploading, self._pngs_out, pngs.held / pngs.limit),
        }
        found = {}
        for name, (meter, incoming, in_bytes) in stages.items():
            queue = incoming.statistics()
            fullness = min(1.0, max(queue.current_buffer_used / queue.max_buffer_size, in_bytes))
            found[name] = StageStatistics(meter.workers, meter.busy_s, meter.maps, fullness)
        return found
