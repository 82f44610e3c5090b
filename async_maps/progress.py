"""What a person or a machine sees while a run goes on. Runs on the event loop, and counts the source in a thread."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager, suppress
from os import PathLike
from time import monotonic
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from anyio import to_thread

from async_maps.errors import AsyncMapsError
from async_maps.filesystems.filesystem import is_remote
from async_maps.sources import open_source
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from typing import TextIO

    from async_maps.report import Report
    from async_maps.stages.meters import Statistics

ProgressKind: TypeAlias = Literal["auto", "bar", "log", "json", "none"]
"""A live bar, a line every few seconds, a JSON object every few seconds, nothing; auto is a bar on a terminal."""


_COUNT_AFTER_S = 5.0
_MAX_SIZES = 1000


class Snapshot:
    """A run at one moment.

    Args:
        report: the run's, as far as it has come.
        statistics: the pipeline's.
        total: maps in the source; None while they are being counted.
    """

    def __init__(self, report: Report, statistics: Statistics, total: int | None) -> None:
        self.report = report
        self.total = total
        self.queues = {
            "colorize": statistics.colorize.queue,
            "encode": statistics.encode.queue,
            "upload": statistics.upload.queue,
        }
        self.upload_limit, self.uploads = statistics.upload_limit, statistics.upload.workers
        self.retries = statistics.retries
        elapsed = max(report.elapsed_s - report.survey_s, 1e-9)
        self.maps_per_s = report.uploaded / elapsed
        self.mb_per_s = report.uploaded_bytes / 1e6 / elapsed
        done = report.uploaded + report.failed
        self.first_pass = report.surveyed > 0 and not report.seen
        self.eta_s = None if total is None or not done else max(0, total - report.seen) * elapsed / done

    def line(self) -> str:
        """The snapshot as a line of text."""
        of_total = "" if self.total is None else f" of {self.total:,}"
        if self.first_pass:
            return f"first pass, for the range of all: {self.report.surveyed:,}{of_total} maps"
        queues = " ".join(f"{name} {share:.0%}" for name, share in self.queues.items())
        return (
            f"{self.report.seen:,}{of_total} maps, "
            f"{self.report.failed:,} failed, {self.report.skipped:,} skipped, "
            f"{self.maps_per_s:,.0f} maps/s, {self.mb_per_s:,.1f} MB/s, ETA {_duration(self.eta_s)}, queues: {queues}"
            f"{self.slowed}"
        )

    @property
    def slowed(self) -> str:
        """That the store has asked for less, if it has."""
        return "" if self.upload_limit >= self.uploads else f", {self.upload_limit} of {self.uploads} uploads at once"

    def as_dict(self) -> dict[str, object]:
        """The snapshot for machines."""
        return {
            "elapsed_s": round(self.report.elapsed_s, 3),
            "surveyed": self.report.surveyed,
            "uploaded": self.report.uploaded,
            "skipped": self.report.skipped,
            "failed": self.report.failed,
            "total": self.total,
            "uploaded_bytes": self.report.uploaded_bytes,
            "maps_per_s": round(self.maps_per_s, 1),
            "mb_per_s": round(self.mb_per_s, 2),
            "eta_s": None if self.eta_s is None else round(self.eta_s, 1),
            "upload_limit": self.upload_limit,
            "retries": self.retries,
            "queues": {name: round(share, 3) for name, share in self.queues.items()},
        }


class Display(Protocol):
    """Shows snapshots."""

    interval_s: float

    def show(self, snapshot: Snapshot) -> None:
        """Show the newest."""

    def close(self) -> None:
        """Leave the screen in order."""


class LineDisplay:
    """A line every few seconds.

    Args:
        out: where.
        render: a snapshot as a line.
    """

    interval_s = 5.0

    def __init__(self, out: TextIO, render: Callable[[Snapshot], str]) -> None:
        self._out = out
        self._render = render

    def show(self, snapshot: Snapshot) -> None:
        """Write a line."""
        print(self._render(snapshot), file=self._out, flush=True)  # what it is for

    def close(self) -> None:
        """Nothing to put in order."""


class BarDisplay:
    """A live bar on a terminal.

    Args:
        out: the terminal.
    """

    interval_s = 0.2

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        self._progress = Progress(
            BarColumn(bar_width=None),  # what the figures leave of the line
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[rates]}"),
            TextColumn("[red]{task.fields[failed]}"),
            TextColumn("[dim]{task.fields[queues]}"),
            console=Console(file=out, force_terminal=True),
            expand=True,
        )
        self._task = self._progress.add_task("", total=None, rates="", failed="", queues="")
        with suppress(OSError):  # a terminal that is gone, as below
            self._progress.start()

    def show(self, snapshot: Snapshot) -> None:
        """Move the bar."""
        levels = "▁▂▃▄▅▆▇█"
        self._progress.update(
            self._task,
            completed=snapshot.report.surveyed if snapshot.first_pass else snapshot.report.seen,
            total=snapshot.total,
            rates="first pass, for the range of all"
            if snapshot.first_pass
            else f"{snapshot.maps_per_s:,.0f} maps/s {snapshot.mb_per_s:,.1f} MB/s ETA {_duration(snapshot.eta_s)}"
            f"{snapshot.slowed}",
            failed=f"{snapshot.report.failed:,} failed" if snapshot.report.failed else "",
            queues="queues " + "".join(levels[round(share * 7)] for share in snapshot.queues.values()),
        )

    def close(self) -> None:
        """Stop the bar where it is."""
        self._progress.stop()


def make_display(kind: ProgressKind, out: TextIO | None = None) -> Display | None:
    """The display of that kind, on standard error if not told otherwise; None for none."""
    out = out or sys.stderr
    if kind == "auto":
        kind = "bar" if out.isatty() else "log"
    if kind == "bar":
        return BarDisplay(out)
    if kind == "log":
        return LineDisplay(out, Snapshot.line)
    if kind == "json":
        return LineDisplay(out, lambda snapshot: json.dumps(snapshot.as_dict()))
    return None


@asynccontextmanager
async def showing(
    display: Display | None, report: Report, statistics: Callable[[], Statistics], place: str | PathLike[str]
) -> AsyncIterator[None]:
    """Show how a run comes along, for as long as the context lasts.

    Args:
        display: on what; nothing happens without one.
        report: the run's; watched.
        statistics: the pipeline's.
        place: the run's source, which is counted meanwhile.
    """
    if display is None:
        yield
        return
    count = _Count()
    started = monotonic()

    def show() -> None:
        report.elapsed_s = monotonic() - started
        with suppress(OSError):  # a terminal that is gone is no reason to end the run
            display.show(Snapshot(report, statistics(), count.total))

    async def tick() -> None:
        while True:
            await asyncio.sleep(display.interval_s)
            show()

    async def count_later() -> None:
        # Who is through by then, with a resumed run mostly, has not listed a large source twice.
        await asyncio.sleep(_COUNT_AFTER_S)
        await to_thread.run_sync(count.run, place)

    # Plain tasks: a task group around the yield would wrap the run's own errors.
    tasks = {asyncio.create_task(tick()), asyncio.create_task(count_later())}
    try:
        yield
        if count.total is None and not report.drained:
            count.total = report.seen
        show()
    finally:
        count.stopped = True
        for task in tasks:
            task.cancel()
        with suppress(OSError):
            display.close()
        await asyncio.wait(tasks)


class _Count:
    """The number of maps in a source, counted in a thread of its own while the run lists them at its own pace."""

    def __init__(self) -> None:
        self.total: int | None = None
        self.stopped = False
        self._countable = True
        self._sizes: set[str] = set()

    def run(self, place: str | PathLike[str]) -> None:
        """Count."""
        total = 0
        try:
            for entry in open_source(place, known=self._suppose):
                total += 1
                if self.stopped:
                    return
                if isinstance(entry, ActivationMap) and entry.part is None and len(self._sizes) < _MAX_SIZES:
                    self._sizes.add(_size(entry))
        except AsyncMapsError:
            # The run itself lists the same source, and says what is wrong with it.
            return
        if self._countable:
            self.total = total

    def _suppose(self, maps: Sequence[ActivationMap]) -> set[str]:
        """That an .npy file is one map if another one of its size was, and in S3, where each look is a request, anyway.

        Of archives in S3 there is no telling.
        """
        remote = [map_ for map_ in maps if map_.path is not None and is_remote(map_.path)]
        self._countable &= all(map_.source.lower().endswith(".npy") for map_ in remote)
        return {map_.name for map_ in remote} | {map_.name for map_ in maps if _size(map_) in self._sizes}


def _size(map_: ActivationMap) -> str:
    """Of the file, as its fingerprint has it."""
    return (map_.fingerprint or "").partition("-")[0]


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "--"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
