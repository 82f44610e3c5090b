"""One partition of S3 and many processes that upload to it, in virtual time.

The rate limiters and the judges of failures are the real ones. The rest is simulated: the partition answers 503 above
its rate, each process can make a certain number of PNGs per second, and an upload is answered after some time.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from async_maps.concurrency.concurrency_limit import ConcurrencyLimit
from async_maps.errors import TransientError
from async_maps.filesystems.blame import judge
from async_maps.stages.judge import Case, Judge, Ruling
from async_maps.stages.rate_limiter import RateLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

PUTS_PER_S = 3_500.0
"""The documented rate of a partition (Amazon S3 user guide, "Optimizing Amazon S3 performance")."""
_PNGS_PER_S = 600.0
_ANSWER_S = (0.03, 0.09)
_BURST_S = 0.05
_SLOW_DOWN = TransientError("s3://bucket: refused with SlowDown", slow_down=True)
_VERDICT = judge(_SLOW_DOWN)


class Outcome(NamedTuple):
    """What the partition took in each second, how many PUTs it refused, and how many maps failed for that."""

    stored: Counter[int]
    refused: int
    failed: int

    def used(self, since_s: int, until_s: int) -> float:
        """Return the share of the partition's rate that was used between two seconds."""
        return sum(self.stored[second] for second in range(since_s, until_s)) / (until_s - since_s) / PUTS_PER_S


class _Partition:
    def __init__(self, outage: tuple[float, float]) -> None:
        self._outage = outage
        self._tokens = _BURST_S * PUTS_PER_S
        self._at = 0.0

    def takes(self, now: float) -> bool:
        self._tokens = min(self._tokens + (now - self._at) * PUTS_PER_S, _BURST_S * PUTS_PER_S)
        self._at = now
        if self._tokens < 1 or self._outage[0] <= now < self._outage[1]:
            return False
        self._tokens -= 1
        return True


class _Process:
    def __init__(self, uploads: int, clock: Callable[[], float], began_at: float) -> None:
        limit = ConcurrencyLimit(uploads, uploads)
        self.limiter = RateLimiter(limit, clock=clock)
        self.judge = Judge(max_attempts=10, give_up_s=300.0, clock=clock)
        self.free = uploads
        self.again: deque[Case] = deque()
        self.png_at = began_at
        self.is_waiting = False


def simulate(  # noqa: PLR0912  # one branch for each event
    processes: int, uploads: int, seconds: float, outage: tuple[float, float] = (inf, inf)
) -> Outcome:
    """Let processes with that many concurrent uploads store maps without end.

    Args:
        processes: the number of processes.
        uploads: the concurrent uploads of each.
        seconds: the virtual duration.
        outage: when the partition answers every PUT with 503, from and to.
    """
    now, chance = 0.0, random.Random(processes * uploads)  # noqa: S311  # not for secrets
    partition, stored, refused, failed = _Partition(outage), Counter[int](), 0, 0
    running = [_Process(uploads, lambda: now, chance.random()) for _ in range(processes)]
    events: list[tuple[float, int, _Process, str, Case | None]] = []
    number = 0

    def later(wait_s: float, process: _Process, what: str, case: Case | None = None) -> None:
        nonlocal number
        number += 1
        heapq.heappush(events, (now + wait_s, number, process, what, case))

    for process in running:
        later(process.png_at, process, "start")
    while events and events[0][0] < seconds:
        now, _, process, what, case = heapq.heappop(events)
        limiter, judge = process.limiter, process.judge
        if case is None:
            process.is_waiting = False
        elif what == "again":
            process.again.append(case)
        elif partition.takes(now):
            stored[int(now)] += 1
            limiter.leave()
            judge.accepted(case)
            limiter.taken(case.began_at)
            judge.close(case)
            process.free += 1
        else:
            refused += 1
            limiter.leave()
            if judge.failed(case, _VERDICT) is Ruling.RETRY:
                later(limiter.failed(_SLOW_DOWN, case.attempts, case.began_at), process, "again", case)
            else:
                failed += 1
        while process.again or process.free:
            ready_at = max(limiter.ready_at, 0.0 if process.again else process.png_at)
            if ready_at > now:
                if not process.is_waiting:
                    process.is_waiting = True
                    later(ready_at - now, process, "start")
                break
            if not limiter.enter_nowait(5_000):
                break
            if process.again:
                case = process.again.popleft()
            else:
                case, process.free = Case(), process.free - 1
                process.png_at = max(process.png_at, now - 0.05) + 1 / _PNGS_PER_S
            judge.begin(case)
            later(chance.uniform(*_ANSWER_S), process, "answer", case)
    return Outcome(stored, refused, failed)
