"""This machine's clock, corrected by a server that refuses signatures of another time. Thread-safe."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger("async_maps")

_TOLERATED_S = 240.0
"""Servers accept signatures of more than this: S3 of 15 minutes, STS of 5 (AWS Signature Version 4)."""
_SAME_S = 60.0
"""Offsets that differ by less are one offset, measured twice."""
_CORRECTIONS = 3
"""After this many different offsets the servers contradict each other."""
_EARLIEST = datetime(2024, 1, 1, tzinfo=UTC).timestamp()
_SKEWED = {"RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"}
_SIGNATURE_TIME = ("signature expired", "signature not yet current")


class Clock:
    """Tells the time for signatures.

    Args:
        wall: returns this machine's time in seconds since 1970.

    Attributes:
        offset_s: how many seconds the servers' clock is ahead of this machine's.
    """

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self.offset_s = 0.0
        self._wall = wall
        self._lock = Lock()
        self._corrections = 0

    def time(self) -> float:
        """Return the corrected time in seconds since 1970."""
        return self._wall() + self.offset_s

    def correct(self, date: str, signed_at: float) -> bool:
        """Take over the time of a server that refused a signature for its time.

        Args:
            date: the Date header of its answer.
            signed_at: the time in the signature, in seconds since 1970.

        Returns:
            Whether the time was the reason, so that a new signature may be accepted.
        """
        told = time_of(date)
        if told is None or told < _EARLIEST or abs(told - signed_at) < _TOLERATED_S:
            return False
        with self._lock:
            offset_s = told - self._wall()
            if abs(offset_s - self.offset_s) < _SAME_S:
                # Another request has corrected it, or this one was sent long after it was signed.
                return True
            if self._corrections == _CORRECTIONS:
                return False
            self._corrections += 1
            self.offset_s = offset_s if abs(offset_s) >= _SAME_S else 0.0
        if self.offset_s:
            _logger.warning(
                "this machine's clock is %s %s the store's; requests are signed with the store's time: set the clock",
                _duration(abs(offset_s)), "behind" if offset_s > 0 else "ahead of",
            )  # fmt: skip
        return True


def timestamp(seconds: float) -> str:
    """Return a time in the form of AWS Signature Version 4: ``20261125T120000Z``."""
    return _timestamp(int(seconds))


@lru_cache(maxsize=4)  # as datetime takes longer, for each request
def _timestamp(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y%m%dT%H%M%SZ")


def time_of(date: str) -> float | None:
    """Return the time in a Date header, in seconds since 1970; None if there is none."""
    try:
        found = parsedate_to_datetime(date)
    except (ValueError, TypeError):
        return None
    # Without a zone, it is in UTC, as all dates of HTTP.
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def blames_time(code: str, message: str, status: int) -> bool:
    """Whether a refusal may have the time of the signature as its reason. The answer to a HEAD has no code."""
    text = message.lower()
    return code in _SKEWED or (code == str(status) == "403") or any(words in text for words in _SIGNATURE_TIME)


def _duration(seconds: float) -> str:
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        # Two hours are "120 minutes": the unit is small enough to be exact.
        if seconds >= 3 * length or unit == "minute":
            count = round(seconds / length)
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    raise AssertionError(seconds)
