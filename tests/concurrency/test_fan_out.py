from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING

import anyio
import pytest

from async_maps.concurrency.fan_out import fan_out

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

pytestmark = pytest.mark.fast


class Producer:
    """Yields numbers; records which were yielded and whether it was closed."""

    def __init__(self, numbers: Iterable[int]) -> None:
        self.given: list[int] = []
        self.is_closed = False
        self._numbers = numbers

    async def items(self) -> AsyncGenerator[int, None]:
        try:
            for number in self._numbers:
                self.given.append(number)
                yield number
        finally:
            self.is_closed = True


async def settled() -> None:
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


def sharing(
    producer: Producer, work: Callable[[int], Awaitable[None]], *, workers: int = 3, limit: int = 100
) -> asyncio.Task[None]:
    """Start a fan-out in which each number is its own size."""
    return asyncio.create_task(fan_out(producer.items(), [work] * workers, size=lambda number: number, limit=limit))


async def test_each_item_goes_to_one_worker() -> None:
    done: list[tuple[str, int]] = []

    def worker(name: str) -> Callable[[int], Awaitable[None]]:
        async def work(number: int) -> None:
            await asyncio.sleep(0)
            done.append((name, number))

        return work

    producer = Producer(range(50))
    await fan_out(producer.items(), [worker("a"), worker("b")], size=lambda _: 0, limit=1)
    assert sorted(number for _, number in done) == list(range(50))
    assert {name for name, _ in done} == {"a", "b"}
    assert producer.is_closed


async def test_workers_run_concurrently_one_item_behind_the_producer() -> None:
    under_way: list[int] = []
    finish = asyncio.Event()

    async def work(number: int) -> None:
        under_way.append(number)
        await finish.wait()

    producer = Producer([1] * 20)
    task = sharing(producer, work, workers=3)
    await settled()
    assert len(under_way) == 3
    # One waits in the stream, one in the producer.
    assert len(producer.given) == 5
    finish.set()
    await task
    assert len(under_way) == 20


@pytest.mark.parametrize(
    ("sizes", "most"), [([40, 60, 1], 2), ([60, 60], 1), ([500, 1], 1), ([500, 0], 2), ([1, 500], 1), ([0] * 3, 3)]
)
async def test_items_in_progress_stay_within_the_byte_limit(sizes: list[int], most: int) -> None:
    under_way: list[int] = []
    finish = asyncio.Event()

    async def work(size: int) -> None:
        under_way.append(size)
        await finish.wait()

    task = sharing(Producer(sizes), work, limit=100)
    await settled()
    assert under_way == sizes[:most]
    finish.set()
    await task
    assert sorted(under_way) == sorted(sizes)


async def test_a_producer_error_cancels_the_workers() -> None:
    cancelled = []

    async def work(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(number)

    def numbers() -> Iterable[int]:
        yield from (1, 2)
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        await sharing(Producer(numbers()), work)
    assert sorted(cancelled) == [1, 2]


async def test_a_worker_error_cancels_the_others_and_closes_the_producer() -> None:
    cancelled = []

    async def work(number: int) -> None:
        if number == 3:
            raise LookupError("bad item")
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(number)

    producer = Producer(range(1, 100))
    with pytest.raises(LookupError, match="bad item"):
        await sharing(producer, work)
    assert sorted(cancelled) == [1, 2]
    assert producer.is_closed
    assert len(producer.given) <= 5


async def test_a_worker_error_ends_a_producer_that_waits_for_bytes() -> None:
    fail = asyncio.Event()

    async def work(_: int) -> None:
        await fail.wait()
        raise LookupError("bad item")

    producer = Producer([100, 100, 100])
    task = sharing(producer, work, limit=100)
    await settled()
    assert producer.given == [100, 100]
    fail.set()
    with pytest.raises(LookupError, match="bad item"):
        await task
    assert producer.is_closed


async def test_cancelling_stops_the_workers_and_closes_the_producer() -> None:
    cancelled = []

    async def work(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(number)

    producer = Producer(range(1, 100))
    task = sharing(producer, work)
    await settled()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(cancelled) == [1, 2, 3]
    assert producer.is_closed


async def test_a_finished_item_is_not_kept_alive() -> None:
    class Item:
        pass

    kept: list[weakref.ref[Item]] = []
    proceed = asyncio.Event()

    async def items() -> AsyncGenerator[Item, None]:
        for _ in range(3):
            item = Item()
            kept.append(weakref.ref(item))
            yield item
        del item
        await proceed.wait()

    async def work(_: Item) -> None:
        await asyncio.sleep(0)

    task = asyncio.create_task(fan_out(items(), [work, work], size=lambda _: 1, limit=10))
    await settled()
    gc.collect()
    assert [item() for item in kept] == [None] * 3
    proceed.set()
    await task
