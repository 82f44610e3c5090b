"""The rate of uploads: how many run concurrently, how long a failed one waits, and when the store counts as down.

One place owns all three, for every upload of a pipeline; stores try once. Runs on the event loop.
"""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from time import monotonic
from typing import TYPE_CHECKING

from async_maps.concurrency.streams import WaitingLine
from async_maps.errors import ObjectError, StoreError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from async_maps.errors import TransientError

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 10.0


class RateLimiter:
    """Additive increase, multiplicative decrease: a store that asks for less gets half, and then one more a round.

    (Chiu and Jain, "Analysis of the increase and decrease algorithms for congestion avoidance", 1989.)

    An object fails after ``max_attempts`` while the store takes others. A store that has taken nothing for
    ``give_up_s``, while it was asked, is down. ``share`` is the random share of a wait, 0 to 1.
    """

    def __init__(
        self,
        concurrency: int,
        *,
        max_attempts: int,
        give_up_s: float,
        clock: Callable[[], float] = monotonic,
        share: Callable[[], float] = random.random,
    ) -> None:
        self.retries = 0
        self._concurrency = concurrency
        self._max_attempts = max_attempts
        self._give_up_s = give_up_s
        self._clock = clock
        self._share = share
        self._limit = float(concurrency)
        self._under_way = 0
        self._line: WaitingLine[bool] = WaitingLine(self._enter, self._leave)
        self._slowed_at = self._taken_at = -1.0
        self._failing_since: float | None = None

    @property
    def limit(self) -> int:
        """The number of concurrent uploads that are allowed at this moment."""
        return int(self._limit)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn among the concurrent uploads, and hold it."""
        await self._line.wait(1)
        try:
            yield
        finally:
            self._leave()

    def taken(self) -> None:
        """The store has taken an object."""
        self._taken_at, self._failing_since = self._clock(), None
        if self._limit < self._concurrency:
            self._limit = min(self._limit + 1 / self._limit, self._concurrency)
            self._line.serve()

    def failed(self, error: TransientError, attempts: int, began_at: float, tried_at: float) -> float:
        """An attempt has failed in a way that may pass: the seconds to wait before the next one.

        They are a random share of twice as long each time, so that uploads that failed together do not come back
        together. The first attempt at this object began at ``began_at``, this one at ``tried_at``.

        Raises:
            ObjectError: this object was tried often enough while the store took others.
            StoreError: the store takes nothing, and has not for long enough.
        """
        now = self._clock()
        if self._failing_since is None:
            self._failing_since = now
        if error.slow_down and tried_at > self._slowed_at:
            # What was under way already when it was slowed down says nothing about the new rate.
            self._limit, self._slowed_at = max(1.0, self._limit / 2), now
        silent_s = now - self._failing_since
        never = self._taken_at < 0
        if silent_s >= self._give_up_s or (never and attempts >= self._max_attempts):
            since = f"in {attempts} attempts" if never else f"for {silent_s:.0f} s"
            raise StoreError(f"the store has taken nothing {since}: {error}; run it again when the store is back")
        if attempts >= self._max_attempts and self._taken_at > began_at:
            raise ObjectError(f"{error} (the last of {attempts} attempts)")
        self.retries += 1
        return self._share() * min(_FIRST_WAIT_S * 2.0**attempts, _LONGEST_WAIT_S)

    def _enter(self, _: int) -> bool | None:
        if self._under_way >= self.limit:
            return None
        self._under_way += 1
        return True

    def _leave(self, _: bool = True) -> None:
        self._under_way -= 1
        self._line.serve()
