"""How many requests run concurrently: more while that makes a stage faster, fewer after time-outs. Pure arithmetic."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_GROWTH = 2
_GAIN = 1.5
"""Half of what a growth brings where latency is the limit."""
_INTERVAL_S = 0.2
_CUT = 0.5


class ConcurrencyLimit:
    """Limits concurrent requests: a limit that may grow, because latency differs from store to store.

    The requests in flight are the rate times the latency (Little's law). If all of them are in use and the latency is
    still near the smallest that was measured, the store can do more, and the limit doubles, as in TCP's slow start. If
    the latency doubles as well, or the last growth has not made the rate clearly higher, something else is the limit:
    the link, the store or this machine.

    A time-out halves the limit. Then each success adds one up to half of what it was, and beyond that each round of
    requests adds one, as for TCP (RFC 5681).

    Args:
        first: the limit at the start.
        most: the limit is never above this.

    Attributes:
        in_flight: the number of requests that run now; the caller counts them.
        grown: called when :attr:`highest` has grown.
    """

    def __init__(self, first: int, most: int) -> None:
        self.in_flight = 0
        self.grown: Callable[[], None] = lambda: None
        self._highest = float(min(first, most))
        self._most = most
        self._limit = self._fast_below = self._highest
        self._lowered_at = -inf
        self._succeeded = True
        self._latency_s = inf
        self._rate_before = 0.0
        self._since = -inf
        self._reset(-inf)

    @property
    def limit(self) -> int:
        """The current maximum number of concurrent requests."""
        return int(self._limit)

    @property
    def highest(self) -> int:
        """The largest limit so far."""
        return int(self._highest)

    def succeeded(self, latency_s: float, now: float) -> None:
        """Record an answer and its latency; its request does not count as in flight anymore."""
        self._succeeded = True
        if self._limit < self._highest:
            step = 1.0 if self._limit < self._fast_below else 1 / self._limit
            self._limit = min(self._limit + step, self._highest)
        elif self._limit < self._most:
            self._measure(latency_s, now)

    def timed_out(self, started_at: float, now: float) -> None:
        """Record that a request that started then had no answer in time."""
        if started_at <= self._lowered_at:
            return  # It says nothing about the limit since then.
        if self._succeeded:
            self._fast_below = self._limit * _CUT
        self._limit, self._lowered_at, self._succeeded = max(1.0, self._limit * _CUT), now, False
        self._reset(now)

    def _measure(self, latency_s: float, now: float) -> None:
        if self._since == -inf:
            self._since = now
        if now - latency_s < self._since:
            return  # It began with an earlier limit.
        self._answers += 1
        self._full += self.in_flight + 1 >= self.limit
        self._sum_s += latency_s
        if self._answers < self.limit or now - self._since < _INTERVAL_S:
            return
        mean_s = self._sum_s / self._answers
        self._latency_s = min(self._latency_s, mean_s)
        rate = self._answers / (now - self._since)
        is_faster = mean_s < _GROWTH * self._latency_s and rate > _GAIN * self._rate_before
        if 2 * self._full > self._answers and is_faster:
            self._rate_before = rate
            self._limit = self._highest = min(self._limit * _GROWTH, float(self._most))
            self.grown()
        self._reset(now)

    def _reset(self, now: float) -> None:
        self._since, self._answers, self._full, self._sum_s = now, 0, 0, 0.0
