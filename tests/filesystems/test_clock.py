"""The correction of a wrong clock by the answers of servers."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING

import pytest

from async_maps.filesystems.clock import Clock, blames_time

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fast
TRUE = datetime(2026, 11, 29, 8, 0, tzinfo=UTC)


class Machine:
    """A machine whose clock is off by ``seconds``, and the Date of a server's answers."""

    def __init__(self, **off: float) -> None:
        self.true = TRUE
        self.off = timedelta(**off)
        self.clock = Clock(self.time)

    def time(self) -> float:
        return (self.true + self.off).timestamp()

    def correct(self, signed_at: float | None = None) -> bool:
        return self.clock.correct(format_datetime(self.true, usegmt=True), signed_at or self.clock.time())


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("date", ["Sun, 29 Nov 2026 08:00:00 -0000", "Sun, 29 Nov 2026 08:00:00"])
def test_a_date_without_a_zone_is_in_utc(date: str, far_from_utc: None) -> None:
    clock = Clock(TRUE.timestamp)
    assert not clock.correct(date, TRUE.timestamp())
    assert clock.offset_s == 0


@pytest.mark.parametrize(
    ("off", "told"),
    [
        ({"minutes": -20}, "20 minutes behind the store's"),
        ({"minutes": 16}, "16 minutes ahead of the store's"),
        ({"hours": 5}, "5 hours ahead of the store's"),
        ({"days": -400}, "400 days behind the store's"),
    ],
)
def test_a_wrong_clock_is_corrected_with_one_notice(
    off: dict[str, float], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    machine = Machine(**off)
    old = machine.clock.time()
    assert machine.correct()
    assert machine.clock.time() == TRUE.timestamp()
    assert all(machine.correct(old) for _ in range(31)), "requests that were signed before"
    (record,) = caplog.records
    assert told in record.getMessage()


def test_a_right_clock_does_not_explain_a_refusal() -> None:
    machine = Machine(minutes=3)
    assert not machine.correct()
    assert machine.clock.offset_s == 0


def test_a_request_that_was_signed_before_a_pause_needs_a_new_signature_only(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine()
    signed_at = machine.clock.time()
    machine.true += timedelta(minutes=20)
    assert machine.correct(signed_at)
    assert (machine.clock.offset_s, caplog.records) == (0, [])


def test_a_clock_that_is_set_right_later_is_used_again() -> None:
    machine = Machine(minutes=-20)
    assert machine.correct()
    machine.off = timedelta()
    assert machine.correct()
    assert machine.clock.offset_s == 0


@pytest.mark.parametrize("date", ["", "soon", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_an_implausible_date_changes_nothing(date: str) -> None:
    machine = Machine(minutes=-20)
    assert not machine.clock.correct(date, machine.clock.time())
    assert machine.clock.offset_s == 0


def test_servers_that_contradict_each_other_end_the_corrections() -> None:
    machine = Machine()
    corrected = 0
    for hours in range(1, 10):
        date = format_datetime(TRUE + timedelta(hours=hours), usegmt=True)
        corrected += machine.clock.correct(date, machine.clock.time())
    assert corrected == 3


@pytest.mark.parametrize(
    ("code", "message", "status", "blames"),
    [
        ("RequestTimeTooSkewed", "", 403, True),
        ("403", "Forbidden", 403, True),
        ("SignatureDoesNotMatch", "Signature expired: 20261129T074000Z is now earlier than ...", 403, True),
        ("SignatureDoesNotMatch", "", 403, False),
        ("AccessDenied", "Access Denied", 403, False),
    ],
)
def test_only_some_refusals_blame_the_time(code: str, message: str, status: int, blames: bool) -> None:
    assert blames_time(code, message, status) == blames
