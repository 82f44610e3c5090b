"""The rate of the uploads: how many run concurrently, and how long to wait for a retry.

It applies to all uploads of a pipeline; the stores themselves never retry. Runs on the event loop.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING

from async_maps.concurrency.streams import WaitingLine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from async_maps.errors import TransientError

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0


class RateLimiter:
    """Limits concurrent uploads by additive increase, multiplicative decrease.

    When the store asks for fewer requests, the limit is halved; then it grows by one per round of uploads (Chiu and
    Jain, "Analysis of the increase and decrease algorithms for congestion avoidance", 1989).

    ``share`` returns the random share of a wait, 0 to 1.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        clock: Callable[[], float] = monotonic,
        share: Callable[[], float] = random.random,
    ) -> None:
        self.retries = 0
        self.retry_reason = ""
        self._concurrency = concurrency
        self._clock = clock
        self._share = share
        self._limit = float(concurrency)
        self._under_way = 0
        self._line: WaitingLine[bool] = WaitingLine(self._enter, self._leave)
        self._slowed_at = -1.0

    @property
    def limit(self) -> int:
        """The current maximum number of concurrent uploads."""
        return int(self._limit)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait until the limit allows one more upload, which runs in the ``with`` block."""
        await self._line.wait(1)
        try:
            yield
        finally:
            self._leave()

    def taken(self) -> None:
        """Record that the store accepted an object."""
        if self._limit < self._concurrency:
            self._limit = min(self._limit + 1 / self._limit, self._concurrency)
            self._line.serve()

    def failed(self, error: TransientError, attempts: int, tried_at: float) -> float:
        """Record a failed attempt that can be retried, and return the seconds to wait for the retry.

        The wait is a random share of an interval that doubles with each attempt ("full jitter"), so that uploads that
        failed together are not retried together. ``tried_at`` is the time of the last of the object's ``attempts``.
        """
        if error.slow_down and tried_at > self._slowed_at:
            # Uploads that started before the limit was reduced say nothing about the new limit.
            self._limit, self._slowed_at = max(1.0, self._limit / 2), self._clock()
        self.retries += 1
        self.retry_reason = str(error)
        return self._share() * min(_FIRST_WAIT_S * 2.0**attempts, _LONGEST_WAIT_S)

    def _enter(self, _: int) -> bool | None:
        if self._under_way >= self.limit:
            return None
        self._under_way += 1
        return True

    def _leave(self, _: bool = True) -> None:
        self._under_way -= 1
        self._line.serve()
