"""The worker processes, as the event loop controls them.

Each worker is a new interpreter, not a fork. One task of the colorize stage owns it and hands it one chunk at a time.
So nothing is queued behind a busy worker, the death of a worker affects one chunk, and cancelling the task kills the
process. ``concurrent.futures`` is not used: its executor prefetches, breaks completely when one process dies, blocks
the loop when it joins its processes, and leaves them running when the parent is killed. It also imports the caller's
``__main__`` in every worker, which fails for scripts without ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import asynccontextmanager
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Protocol

from anyio import CancelScope, CapacityLimiter, create_task_group, to_thread

from async_maps.concurrency.interpreter import Interpreter, StartError, describe_end
from async_maps.concurrency.launch import anonymous_file
from async_maps.concurrency.tasks import in_thread
from async_maps.errors import WorkerError
from async_maps.render.kernel_cache import Loaded
from async_maps.sources.isolation import DecoderProcess, IsolatedReaders
from async_maps.workers.early import MODULE, take_early_worker
from async_maps.workers.worker import Recipe, Reply, Request, colorize_chunk, load_kernels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
    from typing import Any

    from async_maps.concurrency.launch import Launched
    from async_maps.workers.arena import Arena, Block

_START_TIMEOUT_S = 120.0
"""The first start compiles the kernels, possibly on a busy machine."""
_STOP_TIMEOUT_S = 5.0

_logger = logging.getLogger("async_maps")


class Worker(Protocol):
    """Colorizes one chunk at a time."""

    kernels: Loaded
    """How the kernels were loaded."""

    @property
    def is_alive(self) -> bool:
        """Whether the worker can process a chunk, as far as is known."""

    async def launch(self) -> None:
        """Launch or replace the process, which loads its libraries meanwhile; raise WorkerError if that fails."""

    async def start(self) -> None:
        """Wait until the worker can process a chunk; launch it first if it is not alive.

        Raises:
            WorkerError: that fails.
        """

    async def colorize(self, block: Block, free_from: int, requests: list[Request]) -> Reply:
        """Colorize maps into the block from the offset ``free_from`` on; raise WorkerError if the worker dies."""

    async def stop(self, *, kill: bool = False) -> None:
        """Stop the worker, or kill it, and wait until it has ended."""


class ThreadWorker:
    """A worker in a thread of this process, for environments where few processes may be started.

    Files that native libraries decode are read in a child process, if it can be started.

    On cancellation it ends the child process, and waits until the thread has finished the chunk, because the thread
    writes into the block.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.kernels = Loaded(0, 0, "", "")
        self._recipe = recipe
        self._decoder = DecoderProcess(max_pixels=recipe.max_pixels, channels=recipe.reduce)
        self._readers = IsolatedReaders(self._decoder)
        self._thread = CapacityLimiter(1)

    @property
    def is_alive(self) -> bool:
        """Always True: a thread cannot be killed."""
        return True

    async def launch(self) -> None:
        """Do nothing: a thread would load its libraries at the cost of this process."""

    async def start(self) -> None:
        """Load the kernels."""
        self.kernels = await to_thread.run_sync(load_kernels, self._recipe, limiter=self._thread)

    async def colorize(self, block: Block, free_from: int, requests: list[Request]) -> Reply:
        """Colorize maps into a block."""
        work = partial(colorize_chunk, block.memory, free_from, requests, self._recipe, self._readers)
        return await in_thread(work, limiter=self._thread, interrupt=self._decoder.stop)

    async def stop(self, *, kill: bool = False) -> None:
        """Close the last file: the thread ends with its last chunk, and cannot be killed."""
        self._readers.close()
        await to_thread.run_sync(self._decoder.close, limiter=self._thread)


class ProcessWorker:
    """A worker in another process, which is killed when a call is cancelled or fails."""

    def __init__(
        self, recipe: Recipe, arena: Arena, shared_kernels: int | None = None, launched: Launched | None = None
    ) -> None:
        self.kernels = Loaded(0, 0, "", "")
        self._arena = arena
        options = (recipe.table.tobytes(), *(getattr(recipe, field.name) for field in fields(recipe)[1:]))
        self._hello = *options, arena.size
        self._process = Interpreter(MODULE, [] if shared_kernels is None else [shared_kernels], launched)

    @property
    def pid(self) -> int | None:
        """The id of the running process; None if there is none."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.is_alive

    async def launch(self) -> None:
        """Start the interpreter, which loads the kernels."""
        try:
            await self._process.start()
        except StartError as error:
            raise WorkerError(
                f"a worker process cannot be started: {error}; set workers = 0 to use a thread instead"
            ) from error

    async def start(self) -> None:
        """Send the recipe and the arena, and wait until the kernels are loaded."""
        if not self.is_alive:
            await self.launch()
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                self.kernels = Loaded(*await self._exchange(self._hello, self._arena.descriptor))
        except TimeoutError:
            raise WorkerError(f"a worker process was not ready after {_START_TIMEOUT_S:.0f} s") from None

    async def colorize(self, block: Block, free_from: int, requests: list[Request]) -> Reply:
        """Colorize maps into a block."""
        chunk = [tuple(request) for request in requests]
        return Reply.unpacked(*await self._exchange((block.start, block.size, free_from, chunk)))

    async def stop(self, *, kill: bool = False) -> None:
        """Close the worker's input, which ends it; kill it after a time-out, or immediately."""
        await self._process.stop(0.0 if kill else _STOP_TIMEOUT_S)

    async def _exchange(self, message: tuple[Any, ...], descriptor: int | None = None) -> Any:
        try:
            if descriptor is not None:
                self._process.give(descriptor)
            await self._process.send(message)
            return await self._process.receive()
        except (OSError, EOFError) as error:
            status = await self._process.stop()
            raise WorkerError(f"a worker process {describe_end(status)}") from error
        except BaseException:
            # An interrupted exchange cannot be resumed, and the worker may still write into the block.
            await self._process.stop()
            raise


@asynccontextmanager
async def launched_workers(
    recipe: Recipe, count: int, arena: Arena, *, later: bool = False, kernels: int | None = None
) -> AsyncIterator[list[Worker]]:
    """Launch worker processes, or create one worker in a thread if the count is 0; stop them at the end.

    Call :func:`start_workers` when what else takes long has begun. With ``later``, no process is launched: the colorize
    stage starts each for its first chunk. ``kernels`` is a file in memory through which other processes, too, share
    compiled kernels. After an error or a cancellation they are killed.

    Raises:
        WorkerError: a worker cannot be launched.
    """
    early = take_early_worker()
    if early is not None and (later or not count):
        await to_thread.run_sync(early.end)
        early = None
    if early is not None:
        launched, shared_kernels = [early.launched], early.kernels
    else:
        launched, shared_kernels = [], anonymous_file() if kernels is None else os.dup(kernels)
    workers: list[Worker] = [
        ProcessWorker(recipe, arena, shared_kernels, launched.pop() if launched else None) for _ in range(count)
    ] or [ThreadWorker(recipe)]
    kill = True
    try:
        if not later:
            await _each([worker.launch for worker in workers])
        yield workers
        kill = False
    finally:
        with CancelScope(shield=True):
            await _each([partial(worker.stop, kill=kill) for worker in workers])
            os.close(shared_kernels)


async def start_workers(workers: list[Worker], *, later: bool = False) -> None:
    """Wait until the launched workers can process chunks; raise WorkerError if one cannot."""
    await _each([worker.start for worker in workers if worker.is_alive or not later])
    if notice := next((worker.kernels.notice for worker in workers if worker.kernels.problem), ""):
        _logger.warning("%s", notice)


async def _each(functions: Sequence[Callable[[], Coroutine[Any, Any, None]]]) -> None:
    async with create_task_group() as tasks:
        for function in functions:
            tasks.start_soon(function)
