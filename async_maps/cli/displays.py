"""The progress of a command: a live bar, lines or events in JSON."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeAlias

from async_maps.cli.console import tell_failure
from async_maps.cli.events import tell
from async_maps.masking import mask
from async_maps.progress import Progress, duration
from async_maps.report import counted

if TYPE_CHECKING:
    from typing import TextIO

    from async_maps.outcomes import Failure
    from async_maps.progress import OnProgress
    from async_maps.stages.meters import Statistics
    from async_maps.verify import Verification

ProgressKind: TypeAlias = Literal["auto", "bar", "log", "json", "none"]
"""A live bar, a line every few seconds, a JSON object every few seconds, nothing; auto is a bar on a terminal."""

RunProgressKind: TypeAlias = Literal["auto", "bar", "log", "lanes", "json", "none"]
"""lanes is a line every few seconds, and one for each lane."""

_LINE_INTERVAL_S = 5.0


class _NewReasons:
    """Finds the first failure of each new reason."""

    def __init__(self) -> None:
        self._printed = 0

    def __call__(self, progress: Progress) -> list[Failure]:
        groups = progress.report.failure_groups
        new = groups[self._printed :]
        self._printed = len(groups)
        return [group.examples[0] for group in new]

    def to_print(self, progress: Progress) -> list[Failure]:
        """Find them unless --verbose prints all failures, or the run has ended and prints all reasons."""
        prints_all = progress.ended or logging.getLogger("async_maps").isEnabledFor(logging.DEBUG)
        return self(progress) if not prints_all else []


class JsonDisplay:
    """Writes events: the progress every few seconds, each new reason of failures, retries, and slow-downs."""

    def __init__(self) -> None:
        self._new_reasons = _NewReasons()
        self._progress_at = monotonic() + _LINE_INTERVAL_S
        self._retry_at = self._slowed_at = 0.0
        self._retries = 0
        self._upload_limit: int | None = None
        self._upload_rate: float | None = None

    def __call__(self, progress: Progress | Verification) -> None:
        """Write the events since the last call."""
        now, ended = monotonic(), False
        if isinstance(progress, Progress):
            ended = progress.ended
            for failure in self._new_reasons(progress):
                tell_failure(failure)
            if progress.statistics is not None:
                self._tell_of_the_store(progress.statistics, now, ended=ended)
        if ended or now >= self._progress_at:
            self._progress_at = now + _LINE_INTERVAL_S
            tell("progress", **progress.as_dict())

    def _tell_of_the_store(self, found: Statistics, now: float, *, ended: bool) -> None:
        new = found.retries - self._retries
        if new and (ended or now >= self._retry_at):
            self._retry_at, self._retries = now + _LINE_INTERVAL_S, found.retries
            text = f"{counted(new, 'upload attempt')} failed and will be repeated"
            tell("retry", text, level=logging.WARNING, new=new, retries=found.retries, reason=found.retry_reason)
        limit, last_limit = found.upload_limit, self._upload_limit
        rate, last_rate = found.upload_rate, self._upload_rate
        self._upload_limit, self._upload_rate = limit, rate
        reasons = []
        if rate is not None and (last_rate is None or rate < last_rate):
            reasons.append(f"the rate is limited to {rate:,.1f} uploads/s")
        # Fewer lanes have a smaller limit, too.
        if last_limit is not None and limit < min(last_limit, found.upload.workers):
            reasons.append(f"uploads have timed out: {limit} of {found.upload.workers} run concurrently")
        if reasons and now >= self._slowed_at:
            self._slowed_at = now + _LINE_INTERVAL_S
            shown = {"upload_rate": rate, "upload_limit": limit, "concurrency": found.upload.workers}
            tell("slow-down", "; ".join(reasons), level=logging.WARNING, **shown)


class LineDisplay:
    """Writes a line every few seconds, one for each new reason of failures, and one at the end of a run.

    Args:
        out: where they are written.
        lanes: whether each line is followed by one for each lane.
    """

    def __init__(self, out: TextIO, *, lanes: bool = False) -> None:
        self._out = out
        self._shows_lanes = lanes
        self._new_reasons = _NewReasons()
        self._next_at = monotonic() + _LINE_INTERVAL_S

    def __call__(self, progress: Progress | Verification) -> None:
        """Write a line if it is time, or if maps fail for a new reason."""
        for failure in self._new_reasons.to_print(progress) if isinstance(progress, Progress) else ():
            self._print(_describe(failure))
        if isinstance(progress, Progress) and progress.ended:
            if not (progress.report.seen or progress.report.surveyed):
                return  # The error that ended the run before its first map is printed.
        elif monotonic() < self._next_at:
            return
        self._next_at = monotonic() + _LINE_INTERVAL_S
        self._print(progress.line())
        if self._shows_lanes and isinstance(progress, Progress):
            for line in progress.lane_lines():
                self._print(f"  {line}")

    def _print(self, line: str) -> None:
        with suppress(OSError):  # a terminal that is gone is no reason to end the run
            print(mask(line), file=self._out, flush=True)


def _describe(failure: Failure) -> str:
    return mask(f"async-maps: failed (first for this reason): {failure}")


class BarDisplay:
    """A live bar on a terminal; above it a line for each new reason of failures."""

    def __init__(self, out: TextIO) -> None:
        from rich import progress as rich
        from rich.console import Console
        from rich.table import Column
        from rich.text import Text

        self._bar = rich.Progress(
            rich.BarColumn(bar_width=None),  # the rest of the line
            rich.MofNCompleteColumn(table_column=Column(no_wrap=True)),
            rich.TextColumn("{task.fields[rates]}"),
            rich.TextColumn("[red]{task.fields[failed]}"),
            rich.TextColumn("[dim]{task.fields[queues]}"),
            console=Console(file=out),
            expand=True,
        )
        self._text = Text
        self._new_reasons = _NewReasons()
        self._task = self._bar.add_task("", total=None, rates="", failed="", queues="")

    def __call__(self, progress: Progress) -> None:
        """Move the bar."""
        report = progress.report
        rates = (
            f"{progress.maps_per_s:,.0f} maps/s {progress.mb_per_s:,.1f} MB/s ETA {duration(progress.eta_s)}"
            f"{progress.slowed}"
        )
        levels = "▁▂▃▄▅▆▇█"
        with suppress(OSError):  # a terminal that is gone is no reason to end the run
            self._bar.start()
            for failure in self._new_reasons.to_print(progress):
                self._bar.console.print(self._text(_describe(failure)), soft_wrap=True)
            self._bar.update(
                self._task,
                completed=report.surveyed if progress.is_first_pass else report.seen,
                total=progress.total,
                rates="first pass, for range dataset" if progress.is_first_pass else rates,
                failed=f"{report.failed:,} failed" if report.failed else "",
                queues="queues " + "".join(levels[round(share * 7)] for share in progress.queues.values()),
            )
            if progress.ended:
                self._bar.stop()


def make_display(kind: RunProgressKind, out: TextIO | None = None) -> OnProgress | None:
    """Make a display, on standard error by default; None for ``none``. Without a terminal, a bar becomes lines.

    Args:
        kind: the kind of display. The events of ``json`` are messages (:func:`~async_maps.cli.console.messages`).
        out: where the others write.
    """
    out = out or sys.stderr
    if kind in {"auto", "bar"}:
        kind = "bar" if out.isatty() and os.environ.get("TERM") != "dumb" else "log"
    if kind == "bar":
        return BarDisplay(out)
    if kind == "json":
        return JsonDisplay()
    return None if kind == "none" else LineDisplay(out, lanes=kind == "lanes")
