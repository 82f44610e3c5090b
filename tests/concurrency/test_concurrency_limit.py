from __future__ import annotations

import pytest

from async_maps.concurrency.concurrency_limit import ConcurrencyLimit

pytestmark = pytest.mark.fast


def work(limit: ConcurrencyLimit, rounds: int, latency_s: float, *, now: float = 0.0, most_per_s: float = 1e9) -> float:
    """Answer rounds of full concurrency, whose latency is longer if the store can do no more; return the time."""
    for _ in range(rounds):
        count = limit.limit
        took_s = max(latency_s, count / most_per_s)
        limit.in_flight = count
        now += took_s
        for _ in range(count):
            limit.succeeded(took_s, now)
    return now


def test_concurrency_grows_while_the_latency_stays() -> None:
    limit = ConcurrencyLimit(32, 256)
    assert limit.limit == 32
    work(limit, 200, 0.03)
    assert limit.limit == limit.highest == 256


@pytest.mark.parametrize("latency_s", [0.02, 0.15, 1.0])
def test_concurrency_reaches_its_maximum_after_few_rounds(latency_s: float) -> None:
    limit = ConcurrencyLimit(16, 256)
    # A round is measured after the one in flight when the limit grew, and for a while.
    work(limit, 4 * (2 + int(0.2 / latency_s)), latency_s)
    assert limit.limit == 256


def test_concurrency_grows_little_if_only_the_latency_grows() -> None:
    limit = ConcurrencyLimit(32, 256)
    work(limit, 500, 0.03, most_per_s=32 / 0.03)
    assert 32 <= limit.limit <= 64


def test_concurrency_that_is_not_used_does_not_grow() -> None:
    limit, now = ConcurrencyLimit(32, 256), 0.0
    limit.in_flight = 20
    for _ in range(10_000):
        now += 0.001
        limit.succeeded(0.03, now)
    assert limit.limit == 32


def test_a_given_maximum_is_kept() -> None:
    limit = ConcurrencyLimit(64, 64)
    work(limit, 100, 0.03)
    assert limit.limit == 64
    assert ConcurrencyLimit(32, 8).limit == 8


def test_each_growth_is_told() -> None:
    limit, told = ConcurrencyLimit(32, 100), list[int]()
    limit.grown = lambda: told.append(limit.highest)
    work(limit, 200, 0.03)
    assert told == [64, 100]


def test_time_outs_of_one_round_halve_the_limit_once() -> None:
    limit = ConcurrencyLimit(32, 32)
    for i in range(32):
        limit.timed_out(10.0, 70.0 + i / 100)
    assert limit.limit == 16
    limit.timed_out(71.0, 131.0)
    assert limit.limit == 8


def test_at_least_one_request_runs() -> None:
    limit = ConcurrencyLimit(4, 4)
    for i in range(10):
        limit.timed_out(10.0 + 60 * i, 69.0 + 60 * i)
    assert limit.limit == 1


def test_after_time_outs_the_limit_grows_quickly_to_half_and_then_slowly() -> None:
    limit = ConcurrencyLimit(32, 32)
    for i in range(10):  # an outage: what was known before it counts
        limit.timed_out(10.0 + 60 * i, 69.0 + 60 * i)
    for i in range(15):
        limit.succeeded(0.1, 700 + i)
    assert limit.limit == 16
    for i in range(17):
        limit.succeeded(0.1, 800 + i)
    assert limit.limit == 17
    work(limit, 100, 0.1, now=900.0)
    assert limit.limit == 32


def test_a_slow_link_keeps_its_lower_limit_for_rounds() -> None:
    limit, now, rounds = ConcurrencyLimit(32, 256), 0.0, 0
    for _ in range(20):  # 0.45 uploads a second; a time-out is 60 s
        took_s = limit.limit / 0.45
        if took_s > 60:
            now += 60
            limit.timed_out(now - 60, now)
        else:
            now, rounds = work(limit, 1, took_s, now=now), rounds + 1
    assert rounds > 15


def test_concurrency_that_makes_nothing_faster_grows_once() -> None:
    limit, now = ConcurrencyLimit(32, 256), 0.0
    for _ in range(500):  # The latency stays near the smallest, though 1,000 a second are the maximum.
        count = limit.in_flight = limit.limit
        now += max(0.03, count / 1000)
        for _ in range(count):
            limit.succeeded(0.03, now)
    assert limit.limit == 64
