"""The rate of the uploads: when the next may start, and how long to wait for a retry.

It applies to all uploads of a pipeline; the stores themselves never retry. Runs on the event loop.
"""

from __future__ import annotations

import asyncio
import random
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, NamedTuple

from async_maps.concurrency.streams import WaitingLine
from async_maps.stages.pacing import PutRate, Spacing

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.concurrency.concurrency_limit import ConcurrencyLimit
    from async_maps.errors import TransientError

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0
_LIMITED_S = 5.0
"""The rate counts as limited for this time after it has delayed an upload."""


def backoff_s(attempts: int, share: Callable[[], float] = random.random) -> float:
    """Return the seconds to wait after a number of failed attempts: a random share of an interval that doubles."""
    return share() * min(_FIRST_WAIT_S * 2.0**attempts, _LONGEST_WAIT_S)


class Rates(NamedTuple):
    """The user's maxima for uploads: PUTs and bytes per second; infinite if there is none."""

    puts: float = inf
    bytes: float = inf


_UNLIMITED = Rates()


class Pace(NamedTuple):
    """How the uploads go: the attributes of :class:`RateLimiter` with these names."""

    limit: int
    rate: float | None
    retries: int
    retry_reason: str


class RateLimiter:
    """Lets uploads start: by their number in flight, and by the PUTs and bytes a second.

    When the store asks for fewer requests, the rate is reduced (:class:`~async_maps.stages.pacing.PutRate`). When
    requests time out, fewer run concurrently (:class:`~async_maps.concurrency.concurrency_limit.ConcurrencyLimit`).
    Uploads start in the order in which they came.

    ``share`` returns the random share of a wait, 0 to 1.
    """

    def __init__(
        self,
        concurrency: ConcurrencyLimit,
        rates: Rates = _UNLIMITED,
        *,
        clock: Callable[[], float] = monotonic,
        share: Callable[[], float] = random.random,
    ) -> None:
        self.retries = 0
        self.retry_reason = ""
        self._concurrency = concurrency
        self._puts = PutRate(rates.puts)
        self._bytes = Spacing(rates.bytes)
        self._clock = clock
        self._share = share
        self._line: WaitingLine[bool] = WaitingLine(self._take, self.leave)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._delayed_at = -inf

    @property
    def limit(self) -> int:
        """The current maximum number of concurrent uploads."""
        return self._concurrency.limit

    @property
    def rate(self) -> float | None:
        """The current maximum of PUTs a second; None if it has delayed no upload of late."""
        limited = self._clock() - self._delayed_at < _LIMITED_S
        return self._puts.per_s if limited else None

    @property
    def pace(self) -> Pace:
        """How the uploads go now."""
        return Pace(self.limit, self.rate, self.retries, self.retry_reason)

    @property
    def ready_at(self) -> float:
        """The earliest time of the next start that the rates allow."""
        return max(self._puts.ready_at, self._bytes.ready_at)

    def turn(self, size: int) -> _Turn:
        """Return a context manager that waits until an upload of that size in bytes may start."""
        return _Turn(self, size)

    async def enter(self, size: int) -> None:
        """Wait until an upload of that size may start; :meth:`leave` must follow."""
        try:
            await self._line.wait(size)
        except BaseException:
            if self._timer is not None and not self._line.length:
                self._timer.cancel()
                self._timer = None
            raise

    def leave(self, _: bool = True) -> None:
        """Record the end of an upload."""
        self._concurrency.in_flight -= 1
        self._line.serve()

    def enter_nowait(self, size: int) -> bool | None:
        """Start an upload of that size, or return None if it may not start now."""
        if self._concurrency.in_flight >= self._concurrency.limit:
            return None
        now = self._clock()
        if self.ready_at > now:
            if self._puts.ready_at > now:
                self._delayed_at = now
            return None
        self._puts.start(now)
        self._bytes.start(now, size)
        self._concurrency.in_flight += 1
        return True

    def taken(self, tried_at: float) -> None:
        """Record that the store accepted an object, whose request began then."""
        now = self._clock()
        self._puts.grow(now)
        self._concurrency.succeeded(now - tried_at, now)
        self._line.serve()

    def slow_down(self, error: TransientError, tried_at: float) -> None:
        """Reduce the rate or the concurrency, if the error of an attempt that began then is a reason."""
        if error.slow_down:
            self._puts.slowed(tried_at, self._clock())
        if error.timed_out:
            self._concurrency.timed_out(tried_at, self._clock())

    def failed(self, error: TransientError, attempts: int, tried_at: float) -> float:
        """Record a failed attempt that can be retried, and return the seconds to wait for the retry.

        The wait is a random share of an interval that doubles with each attempt ("full jitter"), so that uploads that
        failed together are not retried together. ``tried_at`` is the time of the last of the object's ``attempts``.
        """
        self.slow_down(error, tried_at)
        self.retries += 1
        self.retry_reason = str(error)
        return backoff_s(attempts, self._share)

    def _take(self, size: int) -> bool | None:
        entered = self.enter_nowait(size)
        if entered is None and self._concurrency.in_flight < self._concurrency.limit:
            self._serve_in(self.ready_at - self._clock())
        return entered

    def _serve_in(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if self._timer is not None:
            # Not when(): uvloop's handles of timers that are due lack it.
            if self._timer_at <= when:
                return
            self._timer.cancel()
        self._timer, self._timer_at = loop.call_at(when, self._serve), when

    def _serve(self) -> None:
        self._timer = None
        self._line.serve()


class _Turn:
    __slots__ = ("_limiter", "_size")

    def __init__(self, limiter: RateLimiter, size: int) -> None:
        self._limiter, self._size = limiter, size

    async def __aenter__(self) -> None:
        await self._limiter.enter(self._size)

    async def __aexit__(self, *_: object) -> None:
        self._limiter.leave()
