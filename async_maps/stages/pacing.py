"""When the next upload may start: at most a number of PUTs, and of bytes, a second. Pure arithmetic on given times."""

from __future__ import annotations

from math import inf

_CUT = 0.7
_SCALE = 0.4
"""The constants of botocore's ``retries/throttling.py``, which grows a rate after a cut as CUBIC (RFC 8312) does."""
_LEAST_PER_S = 0.5
_MOST_GROWTH = 2.0
_SMOOTHING = 0.8
_INTERVAL_S = 0.5
_NOISE, _LEAST_REFUSALS, _KEPT = 0.08, 3, 0.995
"""Fewer refusals than this share of the answers, plus this number, are not a reaction to our rate; and the weight of an
answer after each other one."""
_CATCH_UP_S = 0.05
"""Starts that the event loop delayed may follow each other immediately, up to those of this time."""


class Spacing:
    """Spreads starts evenly over time, at a rate that may change: ``units`` are PUTs or bytes."""

    def __init__(self, per_s: float = inf) -> None:
        self.per_s = per_s
        self._started_at = -inf
        self._units = 0.0

    @property
    def ready_at(self) -> float:
        """The earliest time of the next start."""
        return self._started_at + self._units / self.per_s

    def start(self, now: float, units: float = 1.0) -> None:
        """Record a start."""
        self._started_at, self._units = max(self.ready_at, now - _CATCH_UP_S), units


class MeasuredRate:
    """The rate of the starts: a moving average over intervals of half a second."""

    def __init__(self) -> None:
        self.per_s = 0.0
        self._since = -inf
        self._count = 0

    def count(self, now: float) -> None:
        """Record a start."""
        self._count += 1
        seconds = now - self._since
        if seconds == inf:
            self._since = now
        elif seconds >= _INTERVAL_S:
            self.per_s += _SMOOTHING * (self._count / seconds - self.per_s)
            self._since, self._count = now, 0

    def at(self, now: float) -> float:
        """Return the rate; before the end of the first interval, an estimate that is rather too small."""
        return self.per_s or self._count / max(now - self._since, _INTERVAL_S)


class PutRate:
    """The maximum of PUTs a second: none until the store asks for fewer requests, then a cut and cubic growth.

    A cut is to 0.7 of the rate at which the store asked. Growth is fast up to nearly that rate, slow around it and fast
    beyond it, but at most to twice the measured rate.
    """

    def __init__(self, most: float = inf) -> None:
        self._most = most
        self._spacing = Spacing(most)
        self._measured = MeasuredRate()
        self._cut_at = -inf
        self._answers = self._refusals = 0.0
        self._before_cut = inf
        self._flat_s = 0.0

    @property
    def per_s(self) -> float:
        """The current maximum; infinite if there is none."""
        return self._spacing.per_s

    @property
    def ready_at(self) -> float:
        """The earliest time of the next start."""
        return self._spacing.ready_at

    def start(self, now: float) -> None:
        """Record a start."""
        self._measured.count(now)
        self._spacing.start(now)

    def slowed(self, started_at: float, now: float) -> None:
        """Record that the store has answered a request that began then with a request for fewer."""
        if started_at <= self._cut_at:
            return  # It says nothing about the rate since the cut.
        self._count(1.0)
        if self._refusals < _NOISE * self._answers + _LEAST_REFUSALS:
            return
        self._cut_at, self._answers, self._refusals = now, 0.0, 0.0
        self._before_cut = max(min(self.per_s, self._measured.at(now)), _LEAST_PER_S)
        self._flat_s = (self._before_cut * (1 - _CUT) / _SCALE) ** (1 / 3)
        self._spacing.per_s = max(self._before_cut * _CUT, _LEAST_PER_S)

    def grow(self, now: float) -> None:
        """Record that the store has accepted an object."""
        self._count(0.0)
        if self._spacing.per_s < self._most and self._before_cut < inf:
            cubic = self._before_cut + _SCALE * (now - self._cut_at - self._flat_s) ** 3
            most = min(max(_MOST_GROWTH * self._measured.per_s, _LEAST_PER_S), self._most)
            self._spacing.per_s = min(max(cubic, _LEAST_PER_S), most)

    def _count(self, refused: float) -> None:
        self._answers = self._answers * _KEPT + 1
        self._refusals = self._refusals * _KEPT + refused
