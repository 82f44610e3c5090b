"""One producer, many workers: each item goes to the next free worker; the bytes in flight are bounded."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from anyio import create_memory_object_stream, create_task_group

from async_maps.concurrency.streams import ByteBudget
from async_maps.concurrency.tasks import first_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

    from async_maps.concurrency.streams import Lease

T = TypeVar("T")


async def fan_out(
    items: AsyncGenerator[T, None],
    workers: Iterable[Callable[[T], Awaitable[None]]],
    *,
    size: Callable[[T], int],
    limit: int,
) -> None:
    """Give each item to the next free worker, and wait until all are done.

    At most two items wait for a worker. All items in flight occupy at most ``limit`` bytes, where ``size`` returns the
    bytes of one; a larger item runs alone. The first error of the generator or of a worker cancels the others and is
    raised. The generator is always closed, and no worker is left running.
    """
    budget = ByteBudget(limit)
    sending, receiving = create_memory_object_stream[tuple[T, "Lease"]](1)

    async def serve(worker: Callable[[T], Awaitable[None]]) -> None:
        async for item, lease in receiving:
            try:
                await worker(item)
            finally:
                lease.release()
            # The lease is released: do not keep the item in memory while waiting for the next one.
            del item

    try:
        async with receiving, create_task_group() as tasks, sending, aclosing(items):
            for worker in workers:
                tasks.start_soon(serve, worker)
            async for item in items:
                await sending.send((item, await budget.acquire(min(size(item), limit))))
                del item
    except BaseExceptionGroup as group:
        raise first_error(group) from None
