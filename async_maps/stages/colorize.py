"""The colorize stage: gathers maps into chunks, has a worker colorize each into a block, sends the bitmaps on.

It runs on the event loop; the work is done by the workers of :mod:`async_maps.workers.pool`.
"""

from __future__ import annotations

from contextlib import suppress
from math import isqrt
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
from anyio import CapacityLimiter, EndOfStream, WouldBlock, sleep, to_thread

from async_maps.concurrency.streams import send
from async_maps.errors import WorkerError
from async_maps.render.scanlines import scanline_bytes
from async_maps.stages.items import Bitmap
from async_maps.workers.worker import Failed, Request, aligned

if TYPE_CHECKING:
    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from async_maps.stages.items import Job
    from async_maps.stages.meters import Meter
    from async_maps.workers.arena import Arena, Block
    from async_maps.workers.pool import Worker
    from async_maps.workers.worker import Result

_START_ATTEMPTS = 6
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 2.0
"""Waits between two attempts: a lack of memory may be over in a moment."""
_COPY_ON_LOOP_BYTES = 64 * 1024
_ENCODE_BATCH_BYTES = 1024 * 1024
"""Bitmaps go to the encoders in batches of about this many bytes: large enough to be worth a hop between threads,
small enough to share a chunk among several of them."""


class _DiedOverItError(Exception):
    """A worker died while it had a chunk."""


class ColorizeStage:
    """What the workers' tasks share: the memory in which pixels lie until they are encoded, the bounds, the meter.

    A chunk has at most ``chunk_maps`` maps, and takes no further one after ``chunk_bytes`` of a block. ``channels`` is
    the number of bytes of a colorized pixel.
    """

    def __init__(self, arena: Arena, *, chunk_maps: int, chunk_bytes: int, channels: int, meter: Meter) -> None:
        self._arena = arena
        self._chunk_maps = chunk_maps
        self._chunk_bytes = chunk_bytes
        self._channels = channels
        self._meter = meter
        # Of our own: callers in threads may hold all of the default limiter's while they wait for us.
        self._copiers = CapacityLimiter(meter.workers)

    async def run(
        self,
        worker: Worker,
        jobs: MemoryObjectReceiveStream[Job],
        bitmaps: MemoryObjectSendStream[list[Bitmap]],
    ) -> None:
        """One worker's task: gathers what waits into a chunk, has it colorized, sends the bitmaps on in batches.

        A lone map never waits for company: a chunk is what lies in the stream at that moment. The end of the jobs ends
        the stage, which closes its bitmaps.
        """
        async with jobs, bitmaps:
            async for first in jobs:
                chunk = self._gather(first, jobs)
                del first
                wanted = 0
                while chunk:
                    try:
                        done, wanted = await self._colorize(worker, chunk, wanted, bitmaps)
                    except _DiedOverItError:
                        await self._start_again(worker)
                        await self._colorize_singly(worker, chunk, bitmaps)
                        done = len(chunk)
                    chunk = chunk[done:]

    def _gather(self, first: Job, jobs: MemoryObjectReceiveStream[Job]) -> list[Job]:
        chunk, size = [first], self._pixels(first) + _input_bytes(first)
        with suppress(WouldBlock, EndOfStream):
            while len(chunk) < self._chunk_maps and size < self._chunk_bytes:
                chunk.append(jobs.receive_nowait())
                size += self._pixels(chunk[-1]) + _input_bytes(chunk[-1])
        return chunk

    def _pixels(self, job: Job) -> int:
        """Bytes that a map's scanlines probably take: exact for arrays, for files as of square float32 maps."""
        array = job.map.array
        if array is not None:
            return aligned(scanline_bytes(array.shape[0], array.shape[1], self._channels))
        side = isqrt(job.map.max_bytes // 4) + 1
        # A claim beyond the arena is not believed: the worker will say what the map really wants.
        return aligned(min(scanline_bytes(side, side, self._channels), self._arena.size))

    async def _colorize_singly(
        self, worker: Worker, chunk: list[Job], bitmaps: MemoryObjectSendStream[list[Bitmap]]
    ) -> None:
        """Colorize the maps of a chunk over which the worker died: each alone; the one that kills it twice fails."""
        for job in chunk:
            for last in (False, True):
                done = wanted = 0
                try:
                    while not done:
                        done, wanted = await self._colorize(worker, [job], wanted, bitmaps)
                    break
                except _DiedOverItError as error:
                    await self._start_again(worker)
                    if last:
                        job.without_array().fail("colorize", f"{error} over this map, time and again")

    async def _start_again(self, worker: Worker) -> None:
        """Replace a worker that died; the cause may kill its successor too, but not for ever.

        While other workers get on, it is tried without end: those may well do all there is to do. Raises WorkerError
        if none would start while no other got on.
        """
        attempts, maps = 0, self._meter.maps
        while True:
            try:
                return await worker.start()
            except WorkerError as error:
                if self._meter.maps > maps:
                    attempts, maps = 0, self._meter.maps
                attempts += 1
                if attempts == _START_ATTEMPTS:
                    raise WorkerError(
                        f"{error} while it was started again, {attempts} times in a row; fewer workers take less memory"
                    ) from error
            await sleep(min(_FIRST_WAIT_S * 2 ** (attempts - 1), _LONGEST_WAIT_S))

    async def _colorize(
        self, worker: Worker, chunk: list[Job], wanted: int, bitmaps: MemoryObjectSendStream[list[Bitmap]]
    ) -> tuple[int, int]:
        """Colorize as many maps as fit into a block, and send them on.

        ``wanted`` is the number of bytes that the first map is known to need, if it did not fit before. Returned are
        the number of maps done, and the bytes that the next one wants.

        Raises:
            _DiedOverItError: the worker died; nothing was sent on.
            WorkerError: it had died before, and could not be started again.
        """
        pixels = [self._pixels(job) for job in chunk]
        need = sum(pixels)
        if wanted:
            # The guess was wrong for the first; it is probably wrong in the same way for those that follow.
            need = max(wanted, min(need * wanted // max(pixels[0], 1), self._chunk_bytes))
        inputs = sum(_input_bytes(job) for job in chunk)
        try:
            block = await self._arena.take(inputs + need)
        except OSError as error:
            chunk[0].without_array().fail("colorize", f"is too large: {error}")
            return 1, 0
        try:
            requests = await self._copy_inputs(chunk, block, inputs)
            if not worker.is_alive:
                # While it waited, of nothing that these maps have done.
                await self._start_again(worker)
            started = perf_counter()
            try:
                reply = await worker.colorize(block, inputs, requests)
            except WorkerError as error:
                raise _DiedOverItError(str(error)) from error
            self._meter.worked(perf_counter() - started, len(reply.results))
            batches = self._batches(chunk, reply.results, block)
        finally:
            block.release()
        while batches:
            await send(bitmaps, batches.pop(0))
        return len(reply.results), reply.wanted

    def _batches(self, chunk: list[Job], results: list[Result | Failed], block: Block) -> list[list[Bitmap]]:
        batches: list[list[Bitmap]] = [[]]
        size = 0
        for job, result in zip(chunk, results, strict=False):
            light = job.without_array()
            if isinstance(result, Failed):
                light.fail(*result)
                continue
            if size >= _ENCODE_BATCH_BYTES:
                batches.append([])
                size = 0
            end = result.offset + scanline_bytes(result.height, result.width, 4 if result.rgba else 1)
            size += end - result.offset
            block.hold()
            batches[-1].append(Bitmap(light, block.memory[result.offset : end], result, block.release))
        return [batch for batch in batches if batch]

    async def _copy_inputs(self, chunk: list[Job], block: Block, inputs: int) -> list[Request]:
        """Say where each map is to be found; arrays in memory are copied to the beginning of the block."""

        def copy() -> None:
            for array, request in copies:
                np.copyto(np.ndarray(array.shape, request.dtype, block.memory.data, request.offset), array)

        requests, copies, offset = [], [], 0
        for job in chunk:
            array, spans = job.map.array, (job.value_range.kind, job.value_range.low, job.value_range.high)
            if array is None:
                requests.append(Request(job.map.path, job.map.part, 0, (), "", spans))
            else:
                dtype = array.dtype.newbyteorder("=").str
                requests.append(Request(None, None, offset, array.shape, dtype, spans, job.map.measured))
                copies.append((array, requests[-1]))
                offset += _input_bytes(job)
        if inputs <= _COPY_ON_LOOP_BYTES:
            copy()
        else:
            await to_thread.run_sync(copy, limiter=self._copiers)
        return requests


def _input_bytes(job: Job) -> int:
    """Bytes that a map takes in the block before it is colorized: none if it lies in a file."""
    return 0 if job.map.array is None else aligned(job.map.array.nbytes)
