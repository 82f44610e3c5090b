"""The worker processes, as the event loop controls them.

Each worker is a new interpreter, not a fork. One task of the colorize stage owns it and hands it one chunk at a time.
So nothing is queued behind a busy worker, the death of a worker affects one chunk, and cancelling the task kills the
process. ``concurrent.futures`` is not used: its executor prefetches, breaks completely when one process dies, blocks
the loop when it joins its processes, and leaves them running when the parent is killed. It also imports the caller's
``__main__`` in every worker, which fails for scripts without ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol

from anyio import CancelScope, CapacityLimiter, create_task_group, to_thread

from async_maps.concurrency.messages import frame, receive_message
from async_maps.concurrency.tasks import in_thread
from async_maps.errors import WorkerError
from async_maps.machine.shortage import describe_shortage
from async_maps.render.kernel_cache import Loaded
from async_maps.sources.isolation import DecoderProcess, IsolatedReaders
from async_maps.workers.arena import anonymous_file
from async_maps.workers.worker import Recipe, Reply, Request, colorize_chunk, load_kernels

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from typing import Any

    from async_maps.workers.arena import Arena, Block

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from async_maps.workers.worker import main; main()"
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

    async def start(self) -> None:
        """Start or restart the worker, and load its kernels; raise WorkerError if that fails."""

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

    def __init__(self, recipe: Recipe, arena: Arena, shared_kernels: int | None = None) -> None:
        self.kernels = Loaded(0, 0, "", "")
        options = (recipe.table.tobytes(), recipe.png, recipe.invalid, recipe.max_pixels, recipe.reduce)
        self._hello = options, (arena.descriptor, arena.size), shared_kernels
        self._descriptors = [arena.descriptor, *([] if shared_kernels is None else [shared_kernels])]
        self._thread = CapacityLimiter(1)
        self._process: subprocess.Popen[bytes] | None = None
        self._end: int | None = None
        self._replies: asyncio.StreamReader
        self._requests: asyncio.StreamWriter

    @property
    def pid(self) -> int | None:
        """The id of the running process; None if there is none."""
        return self._process.pid if self._process else None

    @property
    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the interpreter and wait until its kernels are loaded."""
        # A worker that died while it was idle still has an open socket.
        await self._kill()
        try:
            # Shielded, because a cancellation between fork and return would leave an unknown process; milliseconds.
            with CancelScope(shield=True):
                ours, theirs = socket.socketpair()
                with theirs:
                    self._replies, self._requests = await asyncio.open_unix_connection(sock=ours)
                    try:
                        self._process = await to_thread.run_sync(self._launch, theirs, limiter=self._thread)
                        self._watch(self._process.pid)
                    except BaseException:
                        self._requests.transport.abort()
                        raise
        except (OSError, RuntimeError) as error:
            reason = describe_shortage(error) or getattr(error, "strerror", None) or error
            raise WorkerError(
                f"a worker process cannot be started: {reason}; set workers = 0 to use a thread instead"
            ) from error
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                self.kernels = Loaded(*await self._exchange(self._hello))
        except TimeoutError:
            await self._kill()
            raise WorkerError(f"a worker process was not ready after {_START_TIMEOUT_S:.0f} s") from None

    async def colorize(self, block: Block, free_from: int, requests: list[Request]) -> Reply:
        """Colorize maps into a block."""
        chunk = [tuple(request) for request in requests]
        return Reply.unpacked(*await self._exchange((block.start, block.size, free_from, chunk)))

    async def stop(self, *, kill: bool = False) -> None:
        """Close the worker's input, which ends it; kill it after a time-out, or immediately.

        The end of the process counts, not the end of its output: a process that the caller forked meanwhile may keep
        the other end of the socket open.
        """
        if self._process is None:
            return
        with suppress(OSError):
            self._requests.write_eof()
        timeout_s = 0.0 if kill else _STOP_TIMEOUT_S
        killing = asyncio.get_running_loop().call_later(timeout_s, self._process.kill)
        try:
            with CancelScope(shield=True), suppress(RuntimeError):  # no thread can be started
                await to_thread.run_sync(self._process.wait, limiter=self._thread)
        finally:
            killing.cancel()
        await self._kill()

    def _launch(self, theirs: socket.socket) -> subprocess.Popen[bytes]:
        """Start the interpreter, in a thread.

        Not by the event loop: two uvloops of this process must not start a process concurrently ("Racing with another
        loop to spawn a process").
        """
        # A worker uses one core: its libraries must not start a thread for each core.
        single = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        # -P: do not import modules from the current folder.
        return subprocess.Popen(  # noqa: S603  # our own module, in this interpreter
            [sys.executable, "-P", "-c", _BOOT, json.dumps(sys.path)],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            pass_fds=self._descriptors,
            env={**os.environ, **single},
            # Not in the terminal's foreground group: only the parent gets Ctrl-C, and drains.
            start_new_session=True,
        )

    def _watch(self, pid: int) -> None:
        """Close the socket when the process ends, where the system reports that.

        The socket alone does not show it if a process that the caller forked during the launch holds the other end.
        """
        if hasattr(os, "pidfd_open"):
            with suppress(OSError):  # an old kernel, or a sandbox
                self._end = os.pidfd_open(pid)
                asyncio.get_running_loop().add_reader(self._end, self._ended)

    def _ended(self) -> None:
        self._unwatch()
        self._requests.transport.abort()

    def _unwatch(self) -> None:
        end, self._end = self._end, None
        if end is not None:
            asyncio.get_running_loop().remove_reader(end)
            os.close(end)

    async def _exchange(self, message: tuple[Any, ...]) -> Any:
        try:
            self._requests.write(frame(message))
            await self._requests.drain()
            return await receive_message(self._replies)
        except (OSError, EOFError) as error:
            status = await self._kill()
            raise WorkerError(f"a worker process {_describe(status)}") from error
        except BaseException:
            # An interrupted exchange cannot be resumed, and the worker may still write into the block.
            await self._kill()
            raise

    async def _kill(self) -> int | None:
        if self._process is None:
            return None
        process, self._process = self._process, None
        self._unwatch()
        self._requests.transport.abort()
        process.kill()
        with CancelScope(shield=True):
            try:
                await to_thread.run_sync(process.wait, limiter=self._thread)
            except RuntimeError:  # no thread can be started: the process is killed, so it ends in milliseconds
                process.wait()
        return process.returncode


def _describe(status: int | None) -> str:
    if status is not None and status < 0:
        return f"was killed by signal {-status}" + (" (out of memory?)" if status == -9 else "")
    return f"ended with status {status}"


@asynccontextmanager
async def started_workers(
    recipe: Recipe, count: int, arena: Arena, *, later: bool = False, kernels: int | None = None
) -> AsyncIterator[list[Worker]]:
    """Start worker processes concurrently, or one worker in a thread if the count is 0; stop them at the end.

    With ``later``, the colorize stage starts each process for its first chunk. ``kernels`` is a file in memory through
    which other processes, too, share compiled kernels. After an error or a cancellation they are killed.

    Raises WorkerError if a worker cannot be started.
    """
    shared_kernels = anonymous_file() if kernels is None else os.dup(kernels)
    workers: list[Worker] = [ProcessWorker(recipe, arena, shared_kernels) for _ in range(count)]
    workers = workers or [ThreadWorker(recipe)]
    kill = True
    try:
        async with create_task_group() as starting:
            for worker in workers:
                if worker.is_alive or not later:
                    starting.start_soon(worker.start)
        if notice := next((worker.kernels.notice for worker in workers if worker.kernels.problem), ""):
            _logger.warning("%s", notice)
        yield workers
        kill = False
    finally:
        with CancelScope(shield=True):
            async with create_task_group() as stopping:
                for worker in workers:
                    stopping.start_soon(partial(worker.stop, kill=kill))
            os.close(shared_kernels)
