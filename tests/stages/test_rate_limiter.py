from __future__ import annotations

import asyncio

import pytest

from async_maps.concurrency.concurrency_limit import ConcurrencyLimit
from async_maps.errors import TransientError
from async_maps.stages.rate_limiter import RateLimiter, Rates
from tests.support.virtual_time import run_in_virtual_time

pytestmark = pytest.mark.fast

BUSY = TransientError("s3://bucket: refused with SlowDown", slow_down=True)
LATE = TransientError("s3://bucket: no answer in 60 s", timed_out=True)
RESET = TransientError("s3://bucket: connection reset")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def paced(concurrency: int = 8) -> tuple[RateLimiter, Clock]:
    clock = Clock()
    limit = ConcurrencyLimit(concurrency, concurrency)
    return RateLimiter(limit, clock=clock, share=lambda: 1.0), clock


def test_waits_double_up_to_ten_seconds() -> None:
    rate_limiter, _ = paced()
    waits = [rate_limiter.failed(RESET, attempts, 100.0) for attempts in range(1, 12)]
    assert waits[:5] == [0.2, 0.4, 0.8, 1.6, 3.2]
    assert waits[-1] == 10.0
    assert rate_limiter.retries == 11


def test_waits_are_random() -> None:
    rate_limiter = RateLimiter(ConcurrencyLimit(1, 1))
    assert len({rate_limiter.failed(RESET, 1, 0.0) for _ in range(20)}) > 10


def test_slow_down_limits_the_rate_and_not_the_concurrency() -> None:
    rate_limiter, clock = paced(8)
    assert rate_limiter.rate is None
    for _ in range(10):
        assert rate_limiter.enter_nowait(1)
        rate_limiter.leave()
        clock.now += 0.1
    for _ in range(10):
        rate_limiter.slow_down(BUSY, clock.now)
    clock.now += 1
    assert rate_limiter.enter_nowait(1)
    assert not rate_limiter.enter_nowait(1)
    assert rate_limiter.rate == pytest.approx(7, abs=1.5)
    assert rate_limiter.limit == 8
    clock.now = rate_limiter.ready_at + 0.001
    assert rate_limiter.enter_nowait(1)
    clock.now += 60  # nothing was delayed of late
    assert rate_limiter.rate is None


def test_time_outs_limit_the_concurrency_and_not_the_rate() -> None:
    rate_limiter, clock = paced(8)
    rate_limiter.slow_down(RESET, clock.now)
    assert rate_limiter.limit == 8
    for _ in range(3):
        clock.now += 60
        rate_limiter.slow_down(LATE, clock.now - 1)
    assert (rate_limiter.limit, rate_limiter.rate) == (1, None)


async def test_uploads_within_the_limit_start_in_order() -> None:
    rate_limiter, clock = paced(4)
    clock.now += 1
    rate_limiter.slow_down(LATE, clock.now)
    entered: list[int] = []
    leave = asyncio.Event()

    async def upload(number: int) -> None:
        async with rate_limiter.turn(1):
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
    rate_limiter.slow_down(LATE, clock.now)
    assert rate_limiter.limit == 1
    async with rate_limiter.turn(1):
        waiting = asyncio.create_task(rate_limiter.enter(1))
        await asyncio.sleep(0)
        assert not waiting.done()
        rate_limiter.taken(clock.now)
        await asyncio.wait_for(waiting, 60)


def limited(rates: Rates, uploads: int, size: int) -> list[tuple[float, int]]:
    """Return the times of the starts of that many uploads, in virtual time, with their numbers."""

    async def main() -> list[tuple[float, int]]:
        clock = asyncio.get_running_loop().time
        rate_limiter = RateLimiter(ConcurrencyLimit(32, 32), rates, clock=clock, share=lambda: 1.0)
        starts: list[tuple[float, int]] = []

        async def upload(number: int) -> None:
            async with rate_limiter.turn(size):
                starts.append((clock(), number))
                await asyncio.sleep(0.05)

        await asyncio.gather(*(upload(number) for number in range(uploads)))
        return starts

    return run_in_virtual_time(main())


def test_a_given_rate_is_kept_without_bursts_and_in_order() -> None:
    starts = limited(Rates(puts=50.0), 201, 5_000)
    assert [number for _, number in starts] == list(range(201))
    assert starts[-1][0] == pytest.approx(4.0, rel=0.05)
    for second in range(8):
        assert sum(second / 2 <= at < second / 2 + 0.5 for at, _ in starts) <= 30


def test_a_given_bandwidth_is_kept_without_bursts() -> None:
    starts = limited(Rates(bytes=1_000_000.0), 101, 20_000)
    assert starts[-1][0] == pytest.approx(2.0, rel=0.05)
    for tenth in range(20):
        assert sum(tenth / 10 <= at < tenth / 10 + 0.1 for at, _ in starts) <= 8


def test_a_wait_for_the_rate_can_be_cancelled_and_leaves_no_timer() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        rate_limiter = RateLimiter(ConcurrencyLimit(8, 8), Rates(bytes=1.0), clock=loop.time)
        await rate_limiter.enter(1_000_000)
        waiting = [asyncio.create_task(rate_limiter.enter(1)) for _ in range(3)]
        await asyncio.sleep(1)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)
        assert loop.time() == pytest.approx(1)
        with pytest.raises(RuntimeError, match="no timer is set"):
            loop._run_once()  # type: ignore[attr-defined]  # the only way to see that nothing is left

    run_in_virtual_time(main())


def test_timers_that_are_due_work_with_uvloop() -> None:
    uvloop = pytest.importorskip("uvloop")
    served: list[int] = []

    async def wait() -> None:
        rate_limiter = RateLimiter(ConcurrencyLimit(4, 4), Rates(puts=5000.0))

        async def upload(number: int) -> None:
            async with rate_limiter.turn(1):
                served.append(number)
                rate_limiter.taken(0.0)

        await asyncio.gather(*(upload(number) for number in range(300)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(wait())
    assert len(served) == 300
