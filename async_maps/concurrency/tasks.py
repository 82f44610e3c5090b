"""Tasks whose cancellation respects anyio's shields."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING, Generic, TypeVar

from anyio import CancelScope, create_task_group, to_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

    from anyio import CapacityLimiter

T = TypeVar("T")


def raise_if_cancelled(error: BaseException) -> None:
    """Raise the error if it is the cancellation of this task, but not if it is a CancelledError from other code."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def first_error(error: BaseException) -> BaseException:
    """Return the first error in nested groups: it caused the cancellation of the others."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def in_tasks(count: int, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine function in several tasks until all have ended; the first error cancels the others."""
    try:
        async with create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(work)
    except BaseExceptionGroup as group:
        raise first_error(group) from None


def see_error(task: asyncio.Task[Any]) -> None:
    """Mark a task's error as retrieved, so that asyncio does not log "exception was never retrieved"."""
    if not task.cancelled():
        task.exception()


class OrderlyTask(Generic[T]):
    """Runs a coroutine function in a new task, which is cancelled through an anyio scope.

    ``asyncio.Task.cancel`` interrupts every wait, even inside a shielded scope, such as the wait for a thread that
    writes the manifest. Cancellation through a scope respects shields, so shielded work and clean-up complete.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, T]], name: str | None = None) -> None:
        self._scope = CancelScope()
        self._function = function
        self.task: asyncio.Task[T] = asyncio.create_task(self._run(), name=name)

    async def _run(self) -> T:
        with self._scope:
            return await self._function()
        raise asyncio.CancelledError

    def done(self) -> bool:
        """Whether the task has ended: with a result, an error or a cancellation."""
        return self.task.done()

    async def result(self, interrupt: Callable[[], object] = lambda: None) -> T:
        """Wait for the task's result or error; if the wait is cancelled, cancel the task too and wait for its end.

        Args:
            interrupt: called if the wait is cancelled, to end what the task's threads wait for.
        """
        try:
            await asyncio.wait({self.task})
        except BaseException:
            interrupt()
            await self.cancel()
            raise
        return self.task.result()

    def request_cancel(self) -> None:
        """Cancel the task without waiting for its end; its error is not reported."""
        self._scope.cancel()
        self.task.add_done_callback(see_error)

    async def cancel(self) -> None:
        """Cancel the task and wait until it has ended; its error is not raised."""
        # A second cancellation may interrupt the wait below.
        self.request_cancel()
        with CancelScope(shield=True):
            await asyncio.wait({self.task})


async def in_thread(work: Callable[[], T], *, limiter: CapacityLimiter, interrupt: Callable[[], object]) -> T:
    """Call a function in a thread; on cancellation call ``interrupt``, which makes it return, and wait for it."""
    running = asyncio.create_task(to_thread.run_sync(work, limiter=limiter))
    try:
        await asyncio.wait({running})
    except BaseException:
        running.add_done_callback(see_error)
        interrupt()
        with CancelScope(shield=True):
            await asyncio.wait({running})
        raise
    return running.result()


async def done_while_alive(task: asyncio.Task[Any], life: Callable[[], object], idle_s: float) -> bool:
    """Wait for the end of a task as long as there are signs of life; cancelling the wait does not cancel the task.

    Args:
        task: the task to wait for.
        life: returns a value that changes with each sign of life.
        idle_s: the longest time without a sign of life.

    Returns:
        True if the task has ended; False if there was no sign of life for ``idle_s``.
    """
    interval_s = min(idle_s / 10, 0.5)
    seen, idle, asked_at = life(), 0.0, monotonic()
    while True:
        await asyncio.wait({task}, timeout=interval_s)
        if task.done():
            return True
        now, before, asked_at = life(), asked_at, monotonic()
        # If this process was stopped or the machine was asleep, only a part of that time was a chance for life.
        idle = idle + min(asked_at - before, 2 * interval_s) if now == seen else 0.0
        seen = now
        if idle >= idle_s:
            return False


@asynccontextmanager
async def calling_every(interval_s: float, call: Callable[[bool], object]) -> AsyncIterator[None]:
    """Call a function periodically inside the ``with`` block, and once at its end, even after an error.

    The function is called with True for the last call, else with False. Its error cancels the block and replaces its
    error.
    """

    async def tick() -> None:
        while True:
            await asyncio.sleep(interval_s)
            call(False)

    def stop(ticking: asyncio.Task[None]) -> None:
        if not ticking.cancelled():
            scope.cancel()

    ticking = asyncio.create_task(tick())
    failed = False
    with CancelScope() as scope:
        # Not a task group: it would wrap the errors of the block.
        ticking.add_done_callback(stop)
        try:
            yield
        finally:
            failed = ticking.done()
            ticking.cancel()
            with CancelScope(shield=True):
                await asyncio.wait({ticking})
            if not failed:
                call(True)
    if failed:
        ticking.result()
