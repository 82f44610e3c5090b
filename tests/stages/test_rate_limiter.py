from __future__ import annotations

import asyncio

import pytest

from async_maps.errors import TransientError
from async_maps.stages.rate_limiter import RateLimiter

pytestmark = pytest.mark.fast

BUSY = TransientError("s3://bucket: refused with SlowDown", slow_down=True)
RESET = TransientError("s3://bucket: connection reset")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(concurrency: int = 8) -> tuple[RateLimiter, Clock]:
    clock = Clock()
    return RateLimiter(concurrency, clock=clock, share=lambda: 1.0), clock


def test_waits_double_up_to_ten_seconds() -> None:
    rate_limiter, _ = paced()
    waits = [rate_limiter.failed(RESET, attempts, 100.0) for attempts in range(1, 12)]
    assert waits[:5] == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert waits[-1] == 10.0
    assert rate_limiter.retries == 11


def test_waits_are_random() -> None:
    rate_limiter = RateLimiter(1)
    assert len({rate_limiter.failed(RESET, 1, 0.0) for _ in range(20)}) > 10


def test_slow_down_halves_the_limit_and_successes_restore_it() -> None:
    rate_limiter, clock = paced(8)
    for _ in range(5):  # all were in flight at the first refusal
        rate_limiter.failed(BUSY, 1, 100.0)
        clock.now += 0.01
    assert rate_limiter.limit == 4
    rate_limiter.failed(BUSY, 2, clock.now)
    assert rate_limiter.limit == 2
    for _ in range(2):
        rate_limiter.taken()
    assert rate_limiter.limit in {2, 3}
    for _ in range(100):
        rate_limiter.taken()
    assert rate_limiter.limit == 8


def test_the_limit_is_at_least_one_and_other_failures_keep_it() -> None:
    rate_limiter, clock = paced(8)
    rate_limiter.failed(RESET, 1, 100.0)
    assert rate_limiter.limit == 8
    for _ in range(10):
        clock.now += 1
        rate_limiter.failed(BUSY, 2, clock.now)
    assert rate_limiter.limit == 1


async def test_uploads_within_the_limit_start_in_order() -> None:
    rate_limiter, clock = paced(4)
    clock.now += 1
    rate_limiter.failed(BUSY, 2, clock.now)
    entered: list[int] = []
    leave = asyncio.Event()

    async def upload(number: int) -> None:
        async with rate_limiter.turn():
            entered.append(number)
            await leave.wait()

    uploads = [asyncio.create_task(upload(number)) for number in range(5)]
    await asyncio.sleep(0.01)
    assert entered == [0, 1]
    uploads[2].cancel()
    leave.set()
    await asyncio.wait(uploads)
    assert entered == [0, 1, 3, 4]


async def test_a_raised_limit_starts_a_waiting_upload() -> None:
    rate_limiter, clock = paced(2)
    rate_limiter.failed(BUSY, 2, clock.now)
    assert rate_limiter.limit == 1
    async with rate_limiter.turn():
        waiting = asyncio.create_task(rate_limiter.turn().__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
        rate_limiter.taken()
        await asyncio.wait_for(waiting, 60)
