from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest

from async_maps.stages.pacing import MeasuredRate, PutRate, Spacing

pytestmark = pytest.mark.fast


def run(rate: PutRate, since: float, until: float) -> int:
    """Start as many PUTs as the rate allows, of at most 1,000 a second; the store takes all."""
    now, started = since, 0
    while now < until:
        if rate.ready_at <= now:
            rate.start(now)
            rate.grow(now)
            started += 1
        now += 0.001
    return started


def refuse(rate: PutRate, now: float, count: int = 100) -> None:
    for _ in range(count):
        rate.slowed(now - 0.001, now)


def test_starts_are_spread_evenly() -> None:
    spacing, starts = Spacing(10.0), []
    now = 100.0
    while now < 102.0:
        if spacing.ready_at <= now:
            spacing.start(now)
            starts.append(now)
        now += 0.001
    assert len(starts) == pytest.approx(20, abs=1)
    assert min(after - before for before, after in pairwise(starts[1:])) > 0.09


def test_late_starts_catch_up_a_twentieth_of_a_second() -> None:
    spacing = Spacing(1_000.0)
    spacing.start(0.0)
    starts = 0
    while spacing.ready_at <= 10.0:
        spacing.start(10.0)
        starts += 1
    assert starts == pytest.approx(50, abs=2)


def test_a_start_waits_for_the_bytes_of_the_one_before() -> None:
    spacing = Spacing(1_000_000.0)
    spacing.start(5.0, 3_000_000)
    assert spacing.ready_at == pytest.approx(8.0, abs=0.1)


def test_no_rate_delays_nothing() -> None:
    spacing = Spacing()
    spacing.start(5.0, 10**12)
    assert spacing.ready_at <= 5.0


def test_the_rate_is_measured() -> None:
    measured = MeasuredRate()
    for i in range(600):
        measured.count(i / 200)
    assert measured.at(3.0) == pytest.approx(200, rel=0.05)


def test_the_rate_is_unlimited_until_the_store_asks_for_less() -> None:
    rate = PutRate()
    assert run(rate, 0.0, 3.0) == pytest.approx(3_000, abs=10)
    assert rate.per_s == inf


def test_a_refused_rate_is_cut_to_seven_tenths() -> None:
    rate = PutRate()
    run(rate, 0.0, 3.0)
    refuse(rate, 3.0)
    assert rate.per_s == pytest.approx(700, rel=0.05)


def test_answers_to_older_requests_cut_nothing() -> None:
    rate = PutRate()
    run(rate, 0.0, 3.0)
    refuse(rate, 3.0)
    before = rate.per_s
    for i in range(1_000):
        rate.slowed(2.9, 3.0 + i / 1_000)
    assert rate.per_s == before


def test_few_refusals_among_many_answers_cut_nothing() -> None:
    rate = PutRate()
    for twentieth in range(200):
        run(rate, twentieth / 20, (twentieth + 1) / 20)
        refuse(rate, (twentieth + 1) / 20, 2)
    assert rate.per_s == inf


def test_growth_stops_near_the_refused_rate_before_it_goes_on() -> None:
    rate = PutRate()
    run(rate, 0.0, 3.0)
    refuse(rate, 3.0)
    flat_s = (1_000 * 0.3 / 0.4) ** (1 / 3)
    run(rate, 3.0, 3.0 + flat_s / 2)
    assert 900 < rate.per_s < 1_000
    run(rate, 3.0 + flat_s / 2, 3.0 + flat_s)
    assert rate.per_s == pytest.approx(1_000, rel=0.02)
    run(rate, 3.0 + flat_s, 3.0 + 2 * flat_s)
    assert 1_100 < rate.per_s < 1_500


def test_the_rate_is_at_most_twice_what_is_used() -> None:
    rate = PutRate()
    run(rate, 0.0, 3.0)
    refuse(rate, 3.0)
    for i in range(100):  # ten a second
        rate.start(20.0 + i / 10)
        rate.grow(20.0 + i / 10)
    assert rate.per_s == pytest.approx(20, rel=0.1)


def test_a_store_that_refuses_all_gets_a_request_every_two_seconds() -> None:
    rate, now, starts = PutRate(), 0.0, []
    while now < 100.0:
        if rate.ready_at <= now:
            rate.start(now)
            rate.slowed(now, now + 0.0001)
            starts.append(now)
        now += 0.001
    assert sum(start > 60 for start in starts) == pytest.approx(20, abs=1)


def test_a_maximum_holds_before_and_after_a_cut() -> None:
    rate = PutRate(100.0)
    assert run(rate, 0.0, 3.0) == pytest.approx(300, abs=10)
    refuse(rate, 3.0)
    assert rate.per_s == pytest.approx(70, rel=0.05)
    run(rate, 3.0, 20.0)
    assert rate.per_s == 100.0
