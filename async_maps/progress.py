"""The progress of a run. Runs on the event loop, and counts the source in a thread."""

from __future__ import annotations

import asyncio
import inspect
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeAlias

from anyio import to_thread

from async_maps.concurrency.tasks import OrderlyTask, calling_every
from async_maps.errors import AsyncMapsError, SettingsError
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.filesystem import Filesystems
from async_maps.sources import open_source, place_of
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.isolation import DecoderProcess
from async_maps.sources.options import SourceOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.stages.meters import LaneStatistics, Statistics

    OnProgress: TypeAlias = Callable[["Progress"], object]

_INTERVAL_S = 0.2
_COUNT_AFTER_S = 5.0
_MAX_SIZES = 1000
_WAITED_FOR = {"start": "its process", "store": "the store", "rate": "the rate limit"}


class Progress:
    """The progress of a run, the argument of ``on_progress``.

    Args:
        count: counts the maps of the source; None if they cannot be counted.

    Attributes:
        report: a copy of the run's report so far.
        statistics: the state of the pipeline; None for a dry run.
        ended: whether this is the last call, which is also made when the run ends with an error.
    """

    def __init__(
        self, report: Report, statistics: Statistics | None, count: SourceCount | None, *, ended: bool = False
    ) -> None:
        self.report = report
        self.statistics = statistics
        self.ended = ended
        self._count = count

    @property
    def total(self) -> int | None:
        """The number of maps in the source, or the run's ``limit`` if that is less; None while it is unknown.

        A thread counts the source, once this property was read and the run takes longer than 5 seconds.
        """
        if self._count is None:
            return None
        self._count.wanted = True
        return self._count.known(self.report)

    @property
    def is_first_pass(self) -> bool:
        """Whether the run reads all maps for ``range = "dataset"``, before it colorizes the first one."""
        return _is_first_pass(self.report)

    @property
    def maps_per_s(self) -> float:
        """Uploaded maps per second."""
        return self.report.uploaded / self._elapsed_s

    @property
    def mb_per_s(self) -> float:
        """Uploaded megabytes per second."""
        return self.report.uploaded_bytes / 1e6 / self._elapsed_s

    @property
    def eta_s(self) -> float | None:
        """The estimated number of seconds to the end; None while it is unknown."""
        report, total = self.report, self.total
        done = report.uploaded + report.failed
        return None if total is None or not done else max(0, total - report.seen) * self._elapsed_s / done

    @property
    def queues(self) -> dict[str, float]:
        """How full the queue before each stage is, 0 to 1."""
        found = self.statistics
        if found is None:
            return {}
        return {"colorize": found.colorize.queue, "encode": found.encode.queue, "upload": found.upload.queue}

    @property
    def slowed(self) -> str:
        """A note if the store does not answer, or if the rate or the number of the uploads is reduced; else empty."""
        found, note = self.statistics, ""
        if found is not None and found.waiting_since:
            return f", waiting for the store since {found.waiting_since[11:19]}"
        if found is not None and found.upload_rate is not None:
            note = f", at most {found.upload_rate:,.1f} uploads/s"
        if found is not None and found.upload_limit < found.upload.workers:
            note += f", {found.upload_limit} of {found.upload.workers} concurrent uploads"
        return note

    @property
    def _elapsed_s(self) -> float:
        return max(self.report.elapsed_s - self.report.survey_s, 1e-9)

    def line(self) -> str:
        """Return the progress as a line of text."""
        report = self.report
        of_total = "" if self.total is None else f" of {self.total:,}"
        if self.is_first_pass:
            return f"first pass, for range dataset: {report.surveyed:,}{of_total} maps"
        queues = " ".join(f"{name} {share:.0%}" for name, share in self.queues.items())
        return (
            f"{report.seen:,}{of_total} maps, {report.failed:,} failed, {report.skipped:,} skipped, "
            f"{self.maps_per_s:,.0f} maps/s, {self.mb_per_s:,.1f} MB/s, ETA {duration(self.eta_s)}, queues: {queues}"
            f"{self.slowed}"
        )

    def lane_lines(self) -> list[str]:
        """Return a line of text for each lane."""
        return [_describe_lane(lane) for lane in self._lanes]

    @property
    def _lanes(self) -> list[LaneStatistics]:
        return [] if self.statistics is None else self.statistics.lanes

    def as_dict(self) -> dict[str, object]:
        """Return the progress as a dict of plain values, for JSON."""
        report, found, eta_s = self.report, self.statistics, self.eta_s
        return {
            "elapsed_s": round(report.elapsed_s, 3),
            "surveyed": report.surveyed,
            "uploaded": report.uploaded,
            "skipped": report.skipped,
            "failed": report.failed,
            "transparent": report.transparent,
            "faint": report.faint,
            "total": self.total,
            "uploaded_bytes": report.uploaded_bytes,
            "maps_per_s": round(self.maps_per_s, 1),
            "mb_per_s": round(self.mb_per_s, 2),
            "eta_s": None if eta_s is None else round(eta_s, 1),
            "upload_limit": None if found is None else found.upload_limit,
            "waiting_since": None if found is None else found.waiting_since or None,
            "upload_rate": None if found is None or found.upload_rate is None else round(found.upload_rate, 1),
            "retries": 0 if found is None else found.retries,
            "queues": {name: round(share, 3) for name, share in self.queues.items()},
            "lanes": [asdict(lane) for lane in self._lanes],
        }


@asynccontextmanager
async def reporting(  # noqa: PLR0913  # one argument a concern
    on_progress: OnProgress | None,
    report: Report,
    source: object,
    statistics: Callable[[], Statistics] | None = None,
    *,
    settings: Settings | None = None,
    reads_all: bool = False,
) -> AsyncIterator[Callable[[], int | None]]:
    """Call ``on_progress`` on the event loop inside the ``with`` block, five times a second and once at its end.

    An error of ``on_progress`` cancels the run and replaces its error. A dry run has no statistics. If the run
    ``reads_all`` maps for the range first, the total of that pass ignores the limit.

    Yields a function that returns the total, or None while it is unknown; unlike ``Progress.total``, it does not make
    the source be counted.
    """
    if on_progress is None:
        yield lambda: None
        return
    if inspect.iscoroutinefunction(on_progress):
        raise SettingsError("on_progress must be a function; found a coroutine function")

    def options() -> SourceOptions:
        return SourceOptions() if settings is None else SourceOptions.of(settings, report.destination)

    count = SourceCount(source, None if reads_all else report.limit, options)

    def show(ended: bool) -> None:
        report.tick()
        if (known := count.total) is not None and (report.limit is None or known < report.limit):
            report.total = known
        on_progress(Progress(report.copy(), None if statistics is None else statistics(), count, ended=ended))

    async with _counting(count), calling_every(_INTERVAL_S, show):
        yield lambda: count.known(report)
        if count.total is None and not report.drained:
            count.total = report.seen


@asynccontextmanager
async def _counting(count: SourceCount) -> AsyncIterator[None]:
    """Count the source during a run, on demand and with a delay: a short run does not list its source twice."""

    async def count_later() -> None:
        await asyncio.sleep(_COUNT_AFTER_S)
        while not count.wanted:  # noqa: ASYNC110  # set in any thread
            await asyncio.sleep(_INTERVAL_S)
        await to_thread.run_sync(count.run, abandon_on_cancel=True)

    if count.place is None:
        yield
        return
    counting = OrderlyTask(count_later)
    try:
        yield
    finally:
        count.stop()
        await counting.cancel()


class SourceCount:
    """Counts the maps of a source in a thread, while the run lists the source more slowly."""

    def __init__(
        self, source: object, limit: int | None = None, options: Callable[[], SourceOptions] = SourceOptions
    ) -> None:
        self.total: int | None = None
        self.wanted = False
        self.stopped = False
        self.place = place_of(source)
        """None if the source cannot be listed twice."""
        self._options = options
        self._limit = limit
        self._countable = True
        self._sizes: set[str] = set()
        self._decoder = DecoderProcess()
        self._filesystems = Filesystems()

    def stop(self) -> None:
        """End the count, without waiting."""
        self.stopped = True
        self._decoder.stop()
        self._filesystems.close()

    def known(self, report: Report) -> int | None:
        """Return the number of maps that the run lists, or reads in its first pass; None if it is unknown."""
        total, limit = self.total, report.limit
        return total if total is None or limit is None or _is_first_pass(report) else min(total, limit)

    def run(self) -> None:
        """Count the maps, and set ``total``."""
        total = 0
        try:
            with self._decoder as decoder, self._filesystems as filesystems:
                source = open_source(
                    self.place or "",
                    known=self._assume_single,
                    options=self._options(),
                    decoder=decoder,
                    filesystems=filesystems,
                )
                for entry in source:
                    total += 1
                    if self.stopped:
                        return
                    if total == self._limit:
                        break
                    if isinstance(entry, ActivationMap) and entry.part is None and len(self._sizes) < _MAX_SIZES:
                        self._sizes.add(_size(entry))
        except AsyncMapsError:
            # The run lists the same source, and reports the error.
            return
        if self._countable:
            self.total = total

    def _assume_single(self, maps: Sequence[ActivationMap]) -> set[str]:
        """Return the sources that are assumed to be one map, so that they are not opened.

        These are all files in buckets, where each look is a request, and the local files with the size of a known
        single map. If there are other formats in buckets, the total stays unknown.
        """
        remote = [map_ for map_ in maps if map_.path is not None and is_remote(map_.path)]
        self._countable &= all(map_.source.lower().endswith(".npy") for map_ in remote)
        return {map_.source for map_ in remote} | {map_.source for map_ in maps if _size(map_) in self._sizes}


def _size(map_: ActivationMap) -> str:
    # A fingerprint starts with the size of the file.
    return (map_.fingerprint or "").partition("-")[0]


def _is_first_pass(report: Report) -> bool:
    return report.surveyed > 0 and not report.seen


def _describe_lane(lane: LaneStatistics) -> str:
    process = "no process" if lane.pid is None else f"process {lane.pid}"
    times = f", restarted {lane.restarts:,} {'time' if lane.restarts == 1 else 'times'}" if lane.restarts else ""
    waits = f", waits for {_WAITED_FOR.get(lane.waits_for, lane.waits_for)}" if lane.waits_for else ""
    return f"lane {lane.name} ({process}{times}): {lane.done:,} done, {lane.in_flight:,} in flight{waits}"


def duration(seconds: float | None) -> str:
    """Format seconds as ``m:ss`` or ``h:mm:ss``; ``--`` if unknown."""
    if seconds is None:
        return "--"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
