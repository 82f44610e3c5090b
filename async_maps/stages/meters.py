"""What the stages count while they work, and the snapshot that progress, reports and services read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Meter:
    """One stage's counters. Written by its workers on the event loop.

    Attributes:
        workers: how many work side by side.
        busy_s: seconds they worked, together.
        maps: how many maps they did.
    """

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
        workers: how many work side by side.
        busy_s: seconds they have worked, together.
        maps: how many maps they have done.
        queue: how full its incoming queue is, 0 to 1: the fuller of its items and its bytes.
    """

    workers: int
    busy_s: float
    maps: int
    queue: float


@dataclass(frozen=True, slots=True)
class Statistics:
    """A pipeline at one moment.

    Attributes:
        fetch: the threads that read what lies in S3.
        colorize: the worker processes.
        encode: the threads.
        upload: the requests.
        uploaded: maps that the store has answered for.
        failed: maps that failed, at whatever stage.
        uploaded_bytes: bytes of their PNGs.
        upload_limit: so many uploads go at once; less than ``upload.workers`` after the store has asked for less.
        retries: attempts to upload that failed and were retried.
        waiting: calls of ``put`` that wait for room, and hold their arrays meanwhile: those are in no queue.
        in_flight: maps that were taken in and have no outcome yet.
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
        """Maps that were taken in: those that are through, and those in flight."""
        return self.uploaded + self.failed + self.in_flight

    @property
    def stages(self) -> dict[str, StageStatistics]:
        """Each stage by its name."""
        return {"fetch": self.fetch, "colorize": self.colorize, "encode": self.encode, "upload": self.upload}

    def slowest_stage(self, elapsed_s: float) -> tuple[str, float]:
        """The stage whose workers were busiest, and how busy (0 to 1), over ``elapsed_s`` seconds."""
        share = {name: stage.busy_s / (stage.workers * max(elapsed_s, 1e-9)) for name, stage in self.stages.items()}
        name = max(share, key=lambda stage: share[stage])
        return name, min(share[name], 1.0)
