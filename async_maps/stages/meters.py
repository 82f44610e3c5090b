"""The counters of the stages, and the snapshot of them that progress, reports and services read."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class Meter:
    """The counters of one stage, as in :class:`StageStatistics`. Updated on the event loop."""

    workers: int
    busy_s: float = 0.0
    maps: int = 0

    def worked(self, seconds: float, maps: int) -> None:
        """Add the seconds and maps of one piece of work."""
        self.busy_s += seconds
        self.maps += maps


class Throughput:
    """Measures the outcomes per second while maps are in flight; about the last 100 outcomes count."""

    _KEPT = 0.99
    _UNKNOWN_S, _LEAST_S, _MOST_S = 1.0, 0.1, 60.0

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._since = clock()
        self._seconds = self._outcomes = 0.0

    def begin(self) -> None:
        """Record that a map has entered an idle pipeline."""
        self._since = self._clock()

    def count(self) -> None:
        """Record an outcome."""
        now = self._clock()
        self._seconds = self._seconds * self._KEPT + now - self._since
        self._outcomes = self._outcomes * self._KEPT + 1.0
        self._since = now

    def wait_s(self, maps: int) -> float:
        """Estimate the seconds until that many maps in flight are done: 0.1 to 60, and 1 if nothing was measured.

        The estimate grows during an outage.
        """
        if not self._outcomes:
            return self._UNKNOWN_S
        seconds = maps * (self._seconds + self._clock() - self._since) / self._outcomes
        return min(max(seconds, self._LEAST_S), self._MOST_S)


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """The state of one stage at one moment.

    Attributes:
        workers: the number of parallel workers.
        busy_s: the total working time of all workers, in seconds.
        maps: the number of maps done.
        queue: how full the incoming queue is, 0 to 1; the larger of its shares in items and in bytes.
    """

    workers: int
    busy_s: float
    maps: int
    queue: float


@dataclass(frozen=True, slots=True)
class LaneStatistics:
    """The state of one lane at one moment.

    Attributes:
        name: its number, from 1; ``quarantine`` for the lane that tries the maps of killed lanes one by one.
        pid: the id of its process; None if it has none now.
        done: the number of its maps that have an outcome.
        in_flight: the number of its maps without an outcome.
        waits_for: ``start`` (of its process), ``maps``, ``store`` (which does not answer), ``rate`` (its share of the
            limit), or the stage that is the slowest; empty if it waits for nothing.
        restarts: how often its process has died.
    """

    name: str
    pid: int | None
    done: int
    in_flight: int
    waits_for: str
    restarts: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """The state of a pipeline at one moment.

    Attributes:
        fetch: the threads that read maps from buckets.
        colorize: the worker processes, or the worker thread, that read and colorize maps.
        encode: the threads that write PNGs.
        upload: the concurrent uploads.
        uploaded: maps whose overlay the store has confirmed.
        failed: maps that failed, in any stage.
        uploaded_bytes: bytes of the uploaded PNGs.
        upload_limit: the current maximum number of concurrent uploads. It is below ``upload.workers`` after the store
            has not answered in time.
        retries: upload attempts that failed and were retried.
        waiting: calls of ``put`` that wait for room. No queue counts their arrays.
        in_flight: maps that were accepted and have no outcome yet.
        abandoned: maps that had no outcome when the pipeline was closed; each may or may not be stored.
        shed: maps that ``put_nowait`` or ``reserve`` refused because the pipeline was full.
        transparent: uploaded maps whose overlay is fully transparent.
        faint: uploaded maps whose overlay is nearly invisible, but not fully transparent.
        retry_reason: why the last retry was necessary; empty if there was none.
        waiting_since: the local time since which no store has answered, in ISO 8601; empty if they do.
        upload_rate: the current maximum of PUTs a second; None if it has delayed no upload of late.
        lanes: each lane that has started; the other figures include them.
    """

    fetch: StageStatistics
    colorize: StageStatistics
    encode: StageStatistics
    upload: StageStatistics
    uploaded: int
    failed: int
    uploaded_bytes: int
    upload_limit: int
    retries: int
    waiting: int = 0
    in_flight: int = 0
    shed: int = 0
    abandoned: int = 0
    transparent: int = 0
    faint: int = 0
    retry_reason: str = ""
    waiting_since: str = ""
    upload_rate: float | None = None
    lanes: list[LaneStatistics] = field(default_factory=list)

    @property
    def accepted(self) -> int:
        """The number of accepted maps: uploaded, failed, abandoned and in flight."""
        return self.uploaded + self.failed + self.abandoned + self.in_flight

    @property
    def stages(self) -> dict[str, StageStatistics]:
        """Each stage by its name."""
        return {"fetch": self.fetch, "colorize": self.colorize, "encode": self.encode, "upload": self.upload}

    def slowest_stage(self, elapsed_s: float) -> tuple[str, float]:
        """Find the stage whose workers were busiest.

        Args:
            elapsed_s: the duration of the run in seconds.

        Returns:
            The stage's name, and the share of the time that its workers were busy, 0 to 1.
        """
        share = {name: stage.busy_s / (stage.workers * max(elapsed_s, 1e-9)) for name, stage in self.stages.items()}
        name = max(share, key=lambda stage: share[stage])
        return name, min(share[name], 1.0)
