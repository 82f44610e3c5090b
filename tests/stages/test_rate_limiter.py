from __future__ import annotations

import asyncio

import pytest

from async_maps.errors import ObjectError, StoreError, TransientError
from async_maps.stages.rate_limiter import RateLimiter

pytestmark = pytest.mark.fast

BUSY = TransientError("s3://bucket: refused with SlowDown", slow_down=True)
RESET = TransientError("s3://bucket: connection reset")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(concurrency: int = 8, *, max_attempts: int = 3, give_up_s: float = 60.0) -> tuple[RateLimiter, Clock]:
    clock = Clock()
    return RateLimiter(
        concurrency, max_attempts=max_attempts, give_up_s=give_up_s, clock=clock, share=lambda: 1.0
    ), clock  # fmt: skip


def test_waits_double_up_to_ten_seconds() -> None:
    rate_limiter, _ = paced(max_attempts=100)
    waits = [rate_limiter.failed(RESET, attempts, 100.0, 100.0) for attempts in range(1, 12)]
    assert waits[:5] == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert waits[-1] == 10.0
    assert rate_limiter.retries == 11


def test_waits_are_random() -> None:
    rate_limiter = RateLimiter(1, max_attempts=10, give_up_s=60.0)
    assert len({rate_limiter.failed(RESET, 1, 0.0, 0.0) for _ in range(20)}) > 10


def test_slow_down_halves_the_limit_and_successes_restore_it() -> None:
    rate_limiter, clock = paced(8)
    for _ in range(5):  # all were in flight at the first refusal
        rate_limiter.failed(BUSY, 1, 90.0, 100.0)
        clock.now += 0.01
    assert rate_limiter.limit == 4
    rate_limiter.failed(BUSY, 2, 90.0, clock.now)
    assert rate_limiter.limit == 2
    for _ in range(2):
        rate_limiter.taken()
    assert rate_limiter.limit in {2, 3}
    for _ in range(100):
        rate_limiter.taken()
    assert rate_limiter.limit == 8


def test_the_limit_is_at_least_one_and_other_failures_keep_it() -> None:
    rate_limiter, clock = paced(8, max_attempts=100)
    rate_limiter.failed(RESET, 1, 100.0, 100.0)
    assert rate_limiter.limit == 8
    for _ in range(10):
        clock.now += 1
        rate_limiter.failed(BUSY, 2, 90.0, clock.now)
    assert rate_limiter.limit == 1


async def test_uploads_within_the_limit_start_in_order() -> None:
    rate_limiter, clock = paced(4)
    clock.now += 1
    rate_limiter.failed(BUSY, 2, 90.0, clock.now)
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
    rate_limiter.failed(BUSY, 2, 90.0, clock.now)
    assert rate_limiter.limit == 1
    async with rate_limiter.turn():
        waiting = asyncio.create_task(rate_limiter.turn().__aenter__())
        await asyncio.sleep(0)
        assert not waiting.done()
        rate_limiter.taken()
        await asyncio.wait_for(waiting, 60)


def test_an_object_is_given_up_only_if_the_store_accepts_others() -> None:
    rate_limiter, clock = paced(max_attempts=3)
    rate_limiter.taken()
    clock.now += 1
    began = clock.now
    for attempts in range(1, 10):
        rate_limiter.failed(
            RESET, attempts, began, clock.now
        )  # no other object is stored either, so this one is not given up
    clock.now += 1
    rate_limiter.taken()
    with pytest.raises(ObjectError, match=r"connection reset \(after 10 attempts\)") as raised:
        rate_limiter.failed(RESET, 10, began, clock.now)
    assert not isinstance(raised.value, TransientError)


def test_a_store_is_down_after_give_up_s_without_a_success() -> None:
    rate_limiter, clock = paced(give_up_s=60.0)
    rate_limiter.taken()
    clock.now += 1000  # without a request
    rate_limiter.failed(RESET, 1, clock.now, clock.now)
    clock.now += 59
    rate_limiter.failed(RESET, 2, clock.now, clock.now)
    clock.now += 1
    for _ in range(2):
        with pytest.raises(StoreError, match=r"has accepted nothing for 60 s: .* run the same command again") as raised:
            rate_limiter.failed(RESET, 3, clock.now, clock.now)
        assert not isinstance(raised.value, ObjectError)
    rate_limiter.taken()
    rate_limiter.failed(RESET, 1, clock.now, clock.now)


def test_a_store_without_any_success_is_down_after_max_attempts() -> None:
    rate_limiter, clock = paced(max_attempts=3, give_up_s=1e6)
    rate_limiter.failed(RESET, 1, clock.now, clock.now)
    rate_limiter.failed(RESET, 2, clock.now, clock.now)
    with pytest.raises(StoreError, match="has accepted nothing in 3 attempts"):
        rate_limiter.failed(RESET, 3, clock.now, clock.now)
