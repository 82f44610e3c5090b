"""The colorize stage: gathers maps into chunks, lets a worker colorize each chunk, and sends the bitmaps on.

Runs on the event loop; the workers are those of :mod:`async_maps.workers.pool`.
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
from async_maps.render.channels import without_channels
from async_maps.render.scanlines import room_bytes
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
"""The waits between two attempts to start a worker: a lack of memory may be brief."""
_COPY_ON_LOOP_BYTES = 64 * 1024
_ENCODE_BATCH_BYTES = 1024 * 1024
"""The approximate size of a batch of bitmaps for an encoder thread. Larger batches cost fewer switches of threads;
smaller ones spread a chunk over more threads."""


class _WorkerDiedError(Exception):
    pass


class ColorizeStage:
    """The state that the tasks of all workers share.

    A chunk has at most ``chunk_maps`` maps; no map is added to one that has ``chunk_bytes`` or more. ``channels`` is
    the number of bytes of a colorized pixel.
    """

    def __init__(self, arena: Arena, *, chunk_maps: int, chunk_bytes: int, channels: int, meter: Meter) -> None:
        self._arena = arena
        self._chunk_maps = chunk_maps
        self._chunk_bytes = chunk_bytes
        self._channels = channels
        self._meter = meter
        # Not the default limiter: the caller's threads may hold all of its tokens while they wait for this pipeline.
        self._copiers = CapacityLimiter(meter.workers)

    async def run(
        self,
        worker: Worker,
        jobs: MemoryObjectReceiveStream[Job],
        bitmaps: MemoryObjectSendStream[list[Bitmap]],
    ) -> None:
        """Run the task of one worker: gather waiting jobs into a chunk, colorize it, send the bitmaps on in batches.

        A chunk has the jobs that are waiting at that moment, so a single map is never delayed. The task ends at the end
        of the jobs.
        """
        async with jobs, bitmaps:
            async for first in jobs:
                chunk = self._gather(first, jobs)
                del first
                wanted = 0
                while chunk:
                    try:
                        done, wanted = await self._colorize(worker, chunk, wanted, bitmaps)
                    except _WorkerDiedError:
                        await self._restart(worker)
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
        """Return the bytes that a map's scanlines need: by its array or header, else those of a square float32 map."""
        array, header = job.map.array, job.map.header
        shape = array.shape if array is not None else () if header is None else header.shape
        if len(shape) not in {2, 3} or 0 in shape:
            side = isqrt(job.map.max_bytes // 4) + 1
            shape = (side, side)
        height, width = without_channels(shape)
        size = room_bytes(height, width, self._channels)
        # The header may be wrong: take no more than another map has taken; the worker returns what it really needs.
        return aligned(size if array is not None else min(size, max(self._arena.size, self._arena.room // 2)))

    async def _colorize_singly(
        self, worker: Worker, chunk: list[Job], bitmaps: MemoryObjectSendStream[list[Bitmap]]
    ) -> None:
        """Colorize each map of a chunk alone, after the worker died; a map with which it dies twice fails."""
        for job in chunk:
            for last in (False, True):
                done = wanted = 0
                try:
                    while not done:
                        done, wanted = await self._colorize(worker, [job], wanted, bitmaps)
                    break
                except _WorkerDiedError as error:
                    await self._restart(worker)
                    if last:
                        job.drop_array()
                        job.fail("colorize", f"{error} each time it processed this map")

    async def _restart(self, worker: Worker) -> None:
        """Restart a worker that died; raise WorkerError if that fails often and no other worker makes progress."""
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
                        f"{error} when it was restarted, {attempts} times in a row; use fewer workers, which need less "
                        "memory"
                    ) from error
            await sleep(min(_FIRST_WAIT_S * 2 ** (attempts - 1), _LONGEST_WAIT_S))

    async def _colorize(
        self, worker: Worker, chunk: list[Job], wanted: int, bitmaps: MemoryObjectSendStream[list[Bitmap]]
    ) -> tuple[int, int]:
        """Colorize as many maps as fit into a block, and send them on.

        ``wanted`` is the number of bytes that the first map needs, if it did not fit before. Returns the number of maps
        done, and the bytes that the next map needs, if it did not fit.

        Raises:
            _WorkerDiedError: the worker died; nothing was sent on.
            WorkerError: the worker had died before, and could not be restarted.
        """
        pixels = [self._pixels(job) for job in chunk]
        need = sum(pixels)
        if wanted:
            # The estimate was wrong for the first map: scale it for the others by the same factor.
            need = max(wanted, min(need * wanted // max(pixels[0], 1), self._chunk_bytes))
        inputs = sum(_input_bytes(job) for job in chunk)
        try:
            # With room for the next map, which a worker colorizes while this one is encoded.
            block = await self._arena.take(inputs + need, spare=max(wanted, *pixels))
        except OSError as error:
            chunk[0].drop_array()
            chunk[0].fail("colorize", f"the map is too large: {error}")
            return 1, 0
        try:
            requests = await self._copy_inputs(chunk, block, inputs)
            if not worker.is_alive:
                # It died while it was idle, so these maps are not the cause.
                await self._restart(worker)
            started = perf_counter()
            try:
                reply = await worker.colorize(block, inputs, requests)
            except WorkerError as error:
                raise _WorkerDiedError(str(error)) from error
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
            job.drop_array()
            if isinstance(result, Failed):
                result.raise_shortage()
                job.fail(result.stage, result.reason)
                continue
            if size >= _ENCODE_BATCH_BYTES:
                batches.append([])
                size = 0
            size += result.size
            block.hold()
            data = block.memory[result.offset : result.offset + result.size]
            batches[-1].append(Bitmap(job, data, result, block.release))
        return [batch for batch in batches if batch]

    async def _copy_inputs(self, chunk: list[Job], block: Block, inputs: int) -> list[Request]:
        def copy() -> None:
            for array, request in copies:
                np.copyto(np.ndarray(array.shape, request.dtype, block.memory.data, request.offset), array)

        requests, copies, offset = [], [], 0
        for job in chunk:
            array, spans = job.map.array, (job.value_range.kind, job.value_range.low, job.value_range.high)
            if array is None:
                requests.append(Request(job.map.path, job.map.part, 0, (), "", spans, None, job.map.max_bytes))
            else:
                dtype = array.dtype.newbyteorder("=").str
                measured = None if job.map.measured is None else tuple(job.map.measured)
                requests.append(Request(None, None, offset, array.shape, dtype, spans, measured))
                copies.append((array, requests[-1]))
                offset += _input_bytes(job)
        if inputs <= _COPY_ON_LOOP_BYTES:
            copy()
        else:
            await to_thread.run_sync(copy, limiter=self._copiers)
        return requests


def _input_bytes(job: Job) -> int:
    return 0 if job.map.array is None else aligned(job.map.array.nbytes)
