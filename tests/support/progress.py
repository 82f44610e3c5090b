"""Progress of a run that is under way."""

from __future__ import annotations

from async_maps.progress import Progress, SourceCount
from async_maps.report import Report
from async_maps.stages.meters import StageStatistics, Statistics


def make_statistics(*queues: float) -> Statistics:
    colorize, encode, upload = (StageStatistics(1, 0.0, 0, queue) for queue in queues or (0.0, 0.0, 0.0))
    return Statistics(StageStatistics(16, 0.0, 0, 0.0), colorize, encode, upload, 0, 0, 0, 1, 0)


def make_report() -> Report:
    return Report(uploaded=300, skipped=1500, failed=100, uploaded_bytes=30_000_000, elapsed_s=20.0)


def make_progress(report: Report, statistics: Statistics | None, total: int | None, *, ended: bool = False) -> Progress:
    count = SourceCount("maps")
    count.total = total
    return Progress(report, statistics, count, ended=ended)
