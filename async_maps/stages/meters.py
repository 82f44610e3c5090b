"""What the stages count while they work, and the snapshot that progress, reports and services read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Meter:
    """One stage's counters, as in :class:`StageStatistics`. Written by its workers on the event loop."""

    workers: int
    busy_s: float = 0.0
    maps: int = 0

    def worked(self, seconds: float, maps: int) -> None:
        """Count a piece of work."""
        self.busy_s += seconds
        self.maps += maps


@dataclass(frozen=True, slots=True)
class StageStatistics:
    """One stage at one moment.

    Attributes:
        workers: the number of parallel workers.
        busy_s: the seconds that all of them together have worked.
        maps: the number of maps that they have done.
        queue: how full the incoming queue is, 0 to 1, in items or in bytes, the larger of both.
    """

    workers: int
    busy_s: float
    maps: int
    queue: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """A pipeline at one moment.

    Attributes:
        fetch: the threads that read maps from S3.
        colorize: the worker processes (or threads) that read and colorize.
        encode: the threads that write PNGs.
        upload: the concurrent uploads.
        uploaded: maps whose overlay the store has confirmed.
        failed: maps that failed, in any stage.
        uploaded_bytes: bytes of the uploaded PNGs.
        upload_limit: the number of concurrent uploads that is allowed now. It is below ``upload.workers`` after the
            store has asked for fewer requests.
        retries: upload attempts that failed and were retried.
        waiting: calls of ``put`` that wait for room. Their arrays are in no queue.
        in_flight: maps that were accepted and have no outcome yet.
        shed: maps that ``put_nowait`` has refused because the pipeline was full.
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

    @property
    def accepted(self) -> int:
        """The number of accepted maps: uploaded, failed and in flight."""
        return self.uploaded + self.failed + self.in_flight

    @property
    def stages(self) -> dict[str, StageStatistics]:
        """Each stage by its name."""
        return {"fetch": self.fetch, "colorize": self.colorize, "encode": self.encode, "upload": self.upload}

    def slowest_stage(self, elapsed_s: float) -> tuple[str, float]:
        """Find the stage whose workers were busiest.

        Args:
            elapsed_s: the seconds in which the work was done.

        Returns:
            The stage's name, and the share of these seconds that its workers were busy, 0 to 1.
        """
        share = {name: stage.busy_s / (stage.workers * max(elapsed_s, 1e-9)) for name, stage in self.stages.items()}
        name = max(share, key=lambda stage: share[stage])
        return name, min(share[name], 1.0)
