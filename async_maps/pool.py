"""The worker processes, seen from the event loop, and the stage that feeds them.

Each worker is a fresh interpreter (never a fork) that one task of the stage owns: the task hands it a chunk and waits.
So nothing is ever submitted ahead of a free worker, one worker's death concerns one chunk, and cancelling the task
kills its process. ``concurrent.futures`` has none of the three: its executor prefetches, breaks as a whole, joins its
processes in a way that blocks the loop, and leaves them alive when the parent is killed. It also imports the caller's
``__main__`` again in every worker, which a plain script without an ``if __name__ == "__main__"`` does not survive.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import suppress
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

import numpy as np
from anyio import CancelScope, CapacityLimiter, EndOfStream, WouldBlock, to_thread

from async_maps.errors import WorkerError
from async_maps.records import Bitmap
from async_maps.worker import Recipe, Reply, Request, Result, aligned, colorize_chunk, frame

if TYPE_CHECKING:
    from typing import Any

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from async_maps.arena import Arena, Block
    from async_maps.meters import Meter
    from async_maps.records import Job

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from async_maps.worker import main; main()"
_START_TIMEOUT_S = 120.0
"""A cold start compiles the kernels, on a machine that may be busy with other things."""
_START_ATTEMPTS = 5
_STOP_TIMEOUT_S = 5.0
_COPY_ON_LOOP_BYTES = 64 * 1024
_ENCODE_BATCH_BYTES = 512 * 1024
"""Bitmaps go to the encoders in batches of about this many bytes: large enough to be worth a hop between threads,
small enough to share a chunk among several of them."""


class Worker(Protocol):
    """Colorizes one chunk at a time."""

    async def start(self) -> None:
        """Make it ready: kernels warm. Raises WorkerError if it cannot be."""

    async def colorize(self, block: Block, free_from: int, requests: list[Request]) -> Reply:
        """Colorize maps into a block. Raises WorkerError if the worker dies over it."""

    async def stop(self) -> None:
        """End it, and wait until it has ended."""


class ThreadWorker:
    """A worker in a thread of this process, for places where no process may be started.

    Cancelled, it waits for its thread to finish the chunk, because the thread writes into the block.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._thread = CapacityLimiter(1)

    async def start(self) -> None:
        """Warm the kernels."""

        def warm() -> None:
            from async_maps import kernels  # noqa: F401

        await to_thread.run_sync(warm, limiter=self._thread)

    async def colorize(self, block: Block, free_from: int, requests: list[Request]) -> Reply:
        """Colorize maps into a block."""
        return await to_thread.run_sync(
            colorize_chunk, block.memory, free_from, requests, self._recipe, limiter=self._thread
        )

    async def stop(self) -> None:
        """Its thread ends with its last chunk."""


class ProcessWorker:
    """A worker in a process of its own. Cancelled, or when it dies, its process is killed and its chunk abandoned."""

    def __init__(self, recipe: Recipe, arena: Arena) -> None:
        self._hello = {
            "table": recipe.table.tobytes().hex(),
            "rgba": recipe.rgba,
            "descriptor": arena.descriptor,
            "size": arena.size,
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """The process's number, while it runs."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the interpreter and wait until its kernels are warm."""
        # One worker is one core: libraries in it must not start a thread for each of them.
        single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        # Milliseconds; cancelled amid them, there would be a process that nobody knows of.
        with CancelScope(shield=True):
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _BOOT,
                json.dumps(sys.path),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                pass_fds=(self._hello["descriptor"],),  # type: ignore[arg-type]
                env={**os.environ, **single},
                # Out of the terminal's foreground group: Ctrl-C is for the parent, who drains.
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._exchange(self._hello)
        except TimeoutError:
            await self._kill()
            raise WorkerError(f"a worker process was not ready after {_START_TIMEOUT_S:.0f} s") from None

    async def colorize(self, block: Block, free_from: int, requests: list[Request]) -> Reply:
        """Colorize maps into a block."""
        reply: tuple[list[list[Any]], int] = await self._exchange([block.start, block.size, free_from, requests])
        return Reply([Result(*result) for result in reply[0]], reply[1])

    async def stop(self) -> None:
        """Close its input, upon which it ends; kill it if it does not."""
        if self._process is None:
            return
        assert self._process.stdin is not None  # noqa: S101  # a pipe, as asked for
        self._process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._process.wait()
        await self._kill()

    async def _exchange(self, message: object) -> Any:
        assert self._process is not None  # noqa: S101  # started
        assert self._process.stdin is not None  # noqa: S101  # a pipe, as asked for
        assert self._process.stdout is not None  # noqa: S101  # likewise
        try:
            self._process.stdin.write(frame(message))
            await self._process.stdin.drain()
            size = int.from_bytes(await self._process.stdout.readexactly(4), "big")
            reply = json.loads(await self._process.stdout.readexactly(size))
        except (OSError, asyncio.IncompleteReadError) as error:
            status = await self._kill()
            raise WorkerError(f"a worker process {_describe(status)}") from error
        except BaseException:
            # Half a conversation cannot be taken up again, and the worker may still write into the block.
            await self._kill()
            raise
        return reply

    async def _kill(self) -> int | None:
        """End it at once; its exit status."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        with CancelScope(shield=True):
            if process.returncode is None:
                # Not process.kill(): it looks whether the process has died, and if so takes its status away from the
                # event loop, which then knows neither that nor why.
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            # To the end of its output too, or the pipe would stay open.
            await process.communicate()
        return process.returncode


def _describe(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    return f"ended with status {status}"


class ColorizeStage:
    """What the workers' tasks share: the memory, the bounds, the meter.

    Args:
        arena: where pixels lie until they are encoded.
        chunk_maps: at most so many maps a chunk.
        chunk_bytes: a chunk that takes so many bytes of a block takes no further map.
        pixel_bytes: bytes of a colorized pixel.
        meter: the stage's.
    """

    def __init__(self, arena: Arena, *, chunk_maps: int, chunk_bytes: int, pixel_bytes: int, meter: Meter) -> None:
        self._arena = arena
        self._chunk_maps = chunk_maps
        self._chunk_bytes = chunk_bytes
        self._pixel_bytes = pixel_bytes
        self._meter = meter

    async def run(
        self,
        worker: Worker,
        jobs: MemoryObjectReceiveStream[Job],
        bitmaps: MemoryObjectSendStream[list[Bitmap]],
    ) -> None:
        """One worker's task: gathers what waits into a chunk, has it colorized, sends the bitmaps on in batches.

        A lone map never waits for company: a chunk is what lies in the stream at that moment.

        Args:
            worker: started.
            jobs: ends the stage when it ends.
            bitmaps: closed when the stage ends.
        """
        async with jobs, bitmaps:
            async for first in jobs:
                chunk = self._gather(first, jobs)
                del first
                wanted = 0
                while chunk:
                    try:
                        done, wanted = await self._colorize(worker, chunk, wanted, bitmaps)
                    except WorkerError:
                        await _start_again(worker)
                        await self._colorize_singly(worker, chunk, bitmaps)
                        break
                    chunk = chunk[done:]

    def _gather(self, first: Job, jobs: MemoryObjectReceiveStream[Job]) -> list[Job]:
        chunk, size = [first], self._pixels(first) + _input_bytes(first)
        with suppress(WouldBlock, EndOfStream):
            while len(chunk) < self._chunk_maps and size < self._chunk_bytes:
                chunk.append(jobs.receive_nowait())
                size += self._pixels(chunk[-1]) + _input_bytes(chunk[-1])
        return chunk

    def _pixels(self, job: Job) -> int:
        """Bytes that a map's pixels probably take: exact for arrays, and for files as if they hold float32."""
        array = job.map.array
        if array is not None:
            return aligned(array.shape[0] * array.shape[1] * self._pixel_bytes)
        # A claim beyond the arena is not believed: the worker will say what the map really wants.
        return aligned(min(job.map.max_bytes // 4 * self._pixel_bytes, self._arena.size))

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
                except WorkerError as error:
                    await _start_again(worker)
                    if last:
                        job.without_array().fail("colorize", f"{error} over this map, time and again")

    async def _colorize(
        self, worker: Worker, chunk: list[Job], wanted: int, bitmaps: MemoryObjectSendStream[list[Bitmap]]
    ) -> tuple[int, int]:
        """Colorize as many maps as fit into a block, and send them on.

        Args:
            worker: started.
            chunk: the maps.
            wanted: bytes that the first one is known to need, if it did not fit before.
            bitmaps: gets them.

        Returns:
            how many maps are done, and how many bytes the next one wants.

        Raises:
            WorkerError: the worker died; nothing was sent on.
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
            started = perf_counter()
            requests = await _place(chunk, block, inputs)
            reply = await worker.colorize(block, inputs, requests)
            self._meter.worked(perf_counter() - started, len(reply.results))
            batches = self._batches(chunk, reply.results, block)
        finally:
            block.release()
        while batches:
            await bitmaps.send(batches.pop(0))
        return len(reply.results), reply.wanted

    def _batches(self, chunk: list[Job], results: list[Result], block: Block) -> list[list[Bitmap]]:
        batches: list[list[Bitmap]] = [[]]
        size = 0
        for job, result in zip(chunk, results, strict=False):
            light = job.without_array()
            if result.failure is not None:
                light.fail(*result.failure)
                continue
            if size >= _ENCODE_BATCH_BYTES:
                batches.append([])
                size = 0
            shape = (result.height, result.width, 4)[: 3 if self._pixel_bytes == 4 else 2]
            pixels = np.ndarray(shape, np.uint8, block.memory.data, result.offset)
            size += pixels.nbytes
            block.hold()
            batches[-1].append(Bitmap(light, pixels, block.release))
        return [batch for batch in batches if batch]


def _input_bytes(job: Job) -> int:
    """Bytes that a map takes in the block before it is colorized: none if it lies in a file."""
    return 0 if job.map.array is None else aligned(job.map.array.nbytes)


async def _start_again(worker: Worker) -> None:
    """Replace a worker that died; whatever killed it may kill its successor too, but not for ever.

    Raises:
        WorkerError: none would start.
    """
    for _ in range(_START_ATTEMPTS - 1):
        with suppress(WorkerError):
            return await worker.start()
    return await worker.start()


async def _place(chunk: list[Job], block: Block, inputs: int) -> list[Request]:
    """Say where each map is to be found; arrays in memory are copied to the beginning of the block."""

    def copy() -> None:
        for array, request in copies:
            np.copyto(np.ndarray(array.shape, request.dtype, block.memory.data, request.offset), array)

    requests, copies, offset = [], [], 0
    for job in chunk:
        array = job.map.array
        if array is None:
            requests.append(Request(job.map.path, job.map.member, 0, (), ""))
        else:
            requests.append(Request(None, None, offset, array.shape, array.dtype.newbyteorder("=").str))
            copies.append((array, requests[-1]))
            offset += _input_bytes(job)
    if inputs <= _COPY_ON_LOOP_BYTES:
        copy()
    else:
        await to_thread.run_sync(copy)
    return requests
