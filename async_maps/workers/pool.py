"""The worker processes, seen from the event loop.

Each worker is a fresh interpreter (never a fork) that one task of the colorize stage owns: the task hands it a chunk
and waits. So nothing is ever submitted ahead of a free worker, one worker's death concerns one chunk, and cancelling
the task kills its process. ``concurrent.futures`` has none of the three: its executor prefetches, breaks as a whole,
joins its processes in a way that blocks the loop, and leaves them alive when the parent is killed. It also imports the
caller's ``__main__`` again in every worker, which a plain script without an ``if __name__ == "__main__"`` does not
survive.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Protocol

from anyio import CancelScope, CapacityLimiter, create_task_group, to_thread

from async_maps.errors import WorkerError
from async_maps.outcomes import MapStatistics
from async_maps.workers.worker import Failed, Recipe, Reply, Request, Result, colorize_chunk, frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from async_maps.workers.arena import Arena, Block

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from async_maps.workers.worker import main; main()"
_START_TIMEOUT_S = 120.0
"""A cold start compiles the kernels, on a machine that may be busy with other things."""
_STOP_TIMEOUT_S = 5.0


class Worker(Protocol):
    """Colorizes one chunk at a time."""

    @property
    def is_alive(self) -> bool:
        """Whether it can be given a chunk, as far as is known."""

    async def start(self) -> None:
        """Make it ready, also again when it has died: kernels warm. Raises WorkerError if it cannot be."""

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

    @property
    def is_alive(self) -> bool:
        """Always: a thread cannot be killed."""
        return True

    async def start(self) -> None:
        """Warm the kernels."""

        def warm() -> None:
            from async_maps.render import kernels  # noqa: F401

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
            "png": recipe.png,
            "invalid": recipe.invalid,
            "max_pixels": recipe.max_pixels,
            "descriptor": arena.descriptor,
            "size": arena.size,
        }
        self._descriptor = arena.descriptor
        self._thread = CapacityLimiter(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._replies: asyncio.StreamReader
        self._requests: asyncio.StreamWriter

    @property
    def pid(self) -> int | None:
        """The process's number, while it runs."""
        return self._process.pid if self._process else None

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the interpreter and wait until its kernels are warm."""
        # Of one that died while nobody spoke to it, the socket is still open.
        await self._kill()
        try:
            # Milliseconds; cancelled meanwhile, there would be a process that nobody knows of.
            with CancelScope(shield=True):
                ours, theirs = socket.socketpair()
                with theirs:
                    self._replies, self._requests = await asyncio.open_unix_connection(sock=ours)
                    try:
                        self._process = await to_thread.run_sync(self._launch, theirs, limiter=self._thread)
                    except BaseException:
                        self._requests.transport.abort()
                        raise
        except OSError as error:
            raise WorkerError(
                f"a worker process cannot be started: {error.strerror}; with workers = 0 none is needed"
            ) from error
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await self._exchange(self._hello)
        except TimeoutError:
            await self._kill()
            raise WorkerError(f"a worker process was not ready after {_START_TIMEOUT_S:.0f} s") from None

    async def colorize(self, block: Block, free_from: int, requests: list[Request]) -> Reply:
        """Colorize maps into a block."""
        results, wanted = await self._exchange([block.start, block.size, free_from, requests])
        return Reply([_result(*result) for result in results], wanted)

    async def stop(self) -> None:
        """Close its input, upon which it ends; kill it if it does not."""
        if self._process is None:
            return
        with suppress(OSError, TimeoutError):
            self._requests.write_eof()
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                # Its end of the socket closes with the process.
                await self._replies.read()
        await self._kill()

    def _launch(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        """Start the interpreter, in a thread.

        An event loop could start it too, but two of uvloop's must not do that at the same time ("Racing with another
        loop to spawn a process"), and others may run one in this process.
        """
        # One worker is one core: libraries in it must not start a thread for each of them.
        single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        # The folder it is started in is not searched for modules (-P).
        return subprocess.Popen(  # noqa: S603  # our own module, in this interpreter
            [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            pass_fds=(self._descriptor,),
            env={**os.environ, **single},
            # Out of the terminal's foreground group: Ctrl-C is for the parent, which drains.
            start_new_session=True,
        )

    async def _exchange(self, message: object) -> Any:
        try:
            self._requests.write(frame(message))
            await self._requests.drain()
            size = int.from_bytes(await self._replies.readexactly(4), "big")
            reply = json.loads(await self._replies.readexactly(size))
        except (OSError, asyncio.IncompleteReadError) as error:
            status = await self._kill()
            raise WorkerError(f"a worker process {_describe(status)}") from error
        except BaseException:
            # Half a conversation cannot be taken up again, and the worker may still write into the block.
            await self._kill()
            raise
        return reply

    async def _kill(self) -> int | None:
        """End it immediately; its exit status."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        self._requests.transport.abort()
        process.kill()
        with CancelScope(shield=True):
            await to_thread.run_sync(process.wait, limiter=self._thread)
        return process.returncode


def _result(*values: Any) -> Result | Failed:
    """A result as it was before JSON made lists of it."""
    if len(values) == len(Failed._fields):
        return Failed(*values)
    result = Result(*values)
    return result._replace(statistics=MapStatistics(*result.statistics))


def _describe(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    return f"ended with status {status}"


@asynccontextmanager
async def started_workers(recipe: Recipe, count: int, arena: Arena) -> AsyncIterator[list[Worker]]:
    """Start worker processes concurrently, or one worker in a thread if the count is 0.

    Raises WorkerError if one could not be started.
    """
    workers: list[Worker] = [ProcessWorker(recipe, arena) for _ in range(count)] or [ThreadWorker(recipe)]
    try:
        async with create_task_group() as starting:
            for worker in workers:
                starting.start_soon(worker.start)
        yield workers
    finally:
        with CancelScope(shield=True):
            async with create_task_group() as stopping:
                for worker in workers:
                    stopping.start_soon(worker.stop)
