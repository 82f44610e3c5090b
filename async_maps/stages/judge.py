"""Whose fault a failed attempt is: the evidence of all attempts of a pipeline. Pure logic, without requests.

A map fails only by evidence that concerns it:

- Of failures that may pass, only those count that happened while the store accepted other objects. If a share f of the
  attempts of other objects failed in the last minute, the object is to blame when f^n < 1e-9 for its n failures.
- A refusal that other objects may meet is held back. The object is to blame if the store accepts another object,
  refuses this one again, and accepts another one again.

Where no other object is on its way, one that the store has accepted is put again: the control.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.filesystems.verdict import Verdict

FEW = 5
"""Objects that are refused alike, one after the other, before the control is asked."""
_WINDOW_S = 60
_LEAST_SHARE, _DOUBT = 0.01, 1e-9
_SUSPECT = 3
"""The failures of an object with this many times ``max_attempts`` say nothing about others."""
_NOTICED_S = 3.0
_CONTROL_FROM = 3
"""The number of attempts of an object after which the control is asked if nothing else passes."""


class Ruling(Enum):
    """What follows from a failure."""

    RETRY = auto()
    """Try this object again."""
    WAIT = auto()
    """There is no evidence yet, but others are on their way."""
    CONTROL = auto()
    """There is no evidence, and none is on its way."""
    BLAME = auto()
    """The object is to blame."""
    DOWN = auto()
    """The store has accepted nothing for ``give_up_s``."""
    ALONE = auto()
    """The store has accepted nothing at all."""


@dataclass(eq=False, slots=True)
class Case:
    """The attempts of one object."""

    attempts: int = 0
    slowed: int = 0
    """Attempts that were answered by a request to slow down."""
    counted: int = 0
    """Failures that may pass, while the store accepted others."""
    refusal: Verdict | None = None
    """The refusal for which the object is held back."""
    began_at: float = 0.0
    ended_at: float = 0.0
    _uncounted: float | None = None
    _tried_again: bool = False
    _failures: deque[float] = field(default_factory=deque)


class Judge:
    """Collects the evidence. For one event loop.

    Args:
        max_attempts: the least number of counted failures before an object is to blame.
        give_up_s: the seconds without an accepted object after which the store counts as down.
        clock: returns the time in seconds.

    Attributes:
        held_back: called when the first object is held back.
    """

    def __init__(self, *, max_attempts: int, give_up_s: float, clock: Callable[[], float] = monotonic) -> None:
        self.held_back: Callable[[], None] = lambda: None
        self._max_attempts = max_attempts
        self._give_up_s = give_up_s
        self._clock = clock
        self._open: set[Case] = set()
        self._held: set[Case] = set()
        self._has_held = False
        self._passed_at = -1.0  # the start of the latest attempt that was accepted
        self._failing_since: float | None = None
        self._failing_from = datetime.now().astimezone()
        self._seconds: deque[list[int]] = deque()
        self._attempts = self._failures = 0

    @property
    def has_accepted(self) -> bool:
        """Whether the store has accepted an object."""
        return self._passed_at >= 0

    @property
    def objects(self) -> int:
        """The number of objects without an outcome."""
        return len(self._open)

    @property
    def held(self) -> int:
        """The number of objects that are held back."""
        return len(self._held)

    @property
    def failing_s(self) -> float:
        """The seconds since the first failure after the last accepted object; 0 if there was none."""
        return 0.0 if self._failing_since is None or not self._open else self._clock() - self._failing_since

    @property
    def is_over(self) -> bool:
        """Whether the store counts as down, because it has accepted nothing for long."""
        return self.failing_s >= self._give_up_s

    @property
    def waiting_since(self) -> str:
        """The local time of the first failure since the last accepted object, after a few seconds; else empty."""
        return self._failing_from.isoformat(timespec="seconds") if self.failing_s >= _NOTICED_S else ""

    def begin(self, case: Case) -> None:
        """Record the start of an attempt."""
        self._open.add(case)
        self._held.discard(case)
        if case._uncounted is not None and self._passed_at >= case._uncounted:
            case.counted += 1
        case._uncounted, case.refusal = None, None
        case.began_at = self._clock()
        case.attempts += 1

    def accepted(self, case: Case) -> None:
        """Record that the store accepted an attempt."""
        self._passed_at, self._failing_since = max(self._passed_at, case.began_at), None
        self._note(failed=False)

    def failed(self, case: Case, verdict: Verdict) -> Ruling:
        """Record a failure that may pass: RETRY, BLAME, DOWN or ALONE."""
        self._end(case)
        if case.counted < _SUSPECT * self._max_attempts:
            self._note(failed=True)
            case._failures.append(self._clock())
        case._uncounted = case.began_at
        case.slowed += verdict.slow_down
        if self.is_over:
            return Ruling.DOWN
        if not self.has_accepted and case.attempts - case.slowed >= self._max_attempts:
            return Ruling.ALONE
        count = case.counted + (self._passed_at >= case.began_at)
        return Ruling.BLAME if self._is_to_blame(case, count) else Ruling.RETRY

    def refused(self, case: Case, verdict: Verdict) -> None:
        """Record a refusal that others may meet: hold the object back until :meth:`rule` says more."""
        self._end(case)
        case.refusal = verdict
        self._held.add(case)
        if not self._has_held:
            self._has_held = True
            self.held_back()

    def rule(self, case: Case) -> Ruling:
        """Rule on an object that is held back: RETRY, WAIT, CONTROL, BLAME or DOWN."""
        if self.has_passed_since(case):
            if case._tried_again:
                return Ruling.BLAME
            case._tried_again = True
            return Ruling.RETRY
        if self.is_over:
            return Ruling.DOWN
        return Ruling.WAIT if self._alike(case) < FEW and self._open - self._held else Ruling.CONTROL

    def are_all_refused(self, case: Case) -> bool:
        """Whether several objects were refused alike, and none was accepted since."""
        return self._alike(case) >= FEW

    def has_passed_since(self, case: Case) -> bool:
        """Whether the store accepted an attempt that began after the last attempt of this object."""
        return self._passed_at >= case.ended_at

    def needs_control(self, case: Case) -> bool:
        """Whether nothing has passed since the last failure of this object."""
        return case.attempts >= _CONTROL_FROM and not self.has_passed_since(case)

    def close(self, case: Case) -> None:
        """Forget an object."""
        self._open.discard(case)
        self._held.discard(case)
        if not self._open:
            self._failing_since = None

    def _end(self, case: Case) -> None:
        case.ended_at = self._clock()
        if self._failing_since is None:
            self._failing_since = case.ended_at
            self._failing_from = datetime.now().astimezone()

    def _alike(self, case: Case) -> int:
        code = None if case.refusal is None else case.refusal.code
        return sum(held.refusal is not None and held.refusal.code == code for held in self._held)

    def _is_to_blame(self, case: Case, count: int) -> bool:
        if count < self._max_attempts:
            return False
        now = self._clock()
        while case._failures and case._failures[0] < now - _WINDOW_S:
            case._failures.popleft()
        self._forget(now)
        own = len(case._failures)
        share = max(_LEAST_SHARE, (self._failures - own) / max(1, self._attempts - own))
        return bool(share**count < _DOUBT)

    def _note(self, *, failed: bool) -> None:
        now = self._clock()
        self._forget(now)
        if not self._seconds or self._seconds[-1][0] != int(now):
            self._seconds.append([int(now), 0, 0])
        self._seconds[-1][1] += 1
        self._seconds[-1][2] += failed
        self._attempts += 1
        self._failures += failed

    def _forget(self, now: float) -> None:
        while self._seconds and self._seconds[0][0] < int(now) - _WINDOW_S:
            _, attempts, failures = self._seconds.popleft()
            self._attempts -= attempts
            self._failures -= failures
