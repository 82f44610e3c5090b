"""Tasks that end in order when they are cancelled."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Generic, TypeVar

from anyio import CancelScope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from typing import Any

T = TypeVar("T")


def raise_if_cancelled(error: BaseException) -> None:
    """Raise a CancelledError that cancels this task; one that other code let out is an error like others."""
    task = asyncio.current_task()
    if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
        raise error


def first_error(error: BaseException) -> BaseException:
    """The first error in nested groups: the one that made the others be cancelled."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def see_error(task: asyncio.Task[Any]) -> None:
    """Keep the event loop from complaining that nobody saw the error of a task that has ended."""
    if not task.cancelled():
        task.exception()


class OrderlyTask(Generic[T]):
    """Runs a coroutine function in a task of its own and cancels it by a scope.

    ``asyncio.Task.cancel`` interrupts any wait of the task, also one that stands behind anyio's shields: a thread that
    is writing the manifest, a process that is being waited for. The scope's cancellation respects them, so what was
    begun there is finished, and what was opened is closed, before the task ends.
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
        """Whether it has ended: with a result, an error or a cancellation."""
        return self.task.done()

    async def result(self) -> T:
        """Wait for what it returns or raises. Cancelled, the task is cancelled too, and has ended when this returns."""
        try:
            await asyncio.wait({self.task})
        except BaseException:
            await self.cancel()
            raise
        return self.task.result()

    async def cancel(self) -> None:
        """Cancel it and wait until it has ended; its own error is not raised."""
        self._scope.cancel()
        # Also if we are cancelled once more and do not wait: the loop need not complain that nobody saw its error.
        self.task.add_done_callback(see_error)
        with CancelScope(shield=True):
            await asyncio.wait({self.task})


@asynccontextmanager
async def calling_every(interval_s: float, call: Callable[[bool], object]) -> AsyncIterator[None]:
    """Call a function again and again while the context lasts, and once at its end, also if that is an error.

    The function gets whether this is the last call. An error that it raises cancels the context, and is raised in its
    place.
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
        # A plain task: a task group around the yield would wrap the context's own errors.
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
