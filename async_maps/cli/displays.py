"""The progress of a command: a live bar, lines or JSON objects."""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from time import monotonic
from typing import TYPE_CHECKING, Literal, TypeAlias

from async_maps.progress import Progress, duration

if TYPE_CHECKING:
    from typing import TextIO

    from async_maps.outcomes import Failure
    from async_maps.progress import OnProgress
    from async_maps.verify import Verification

ProgressKind: TypeAlias = Literal["auto", "bar", "log", "json", "none"]
"""A live bar, a line every few seconds, a JSON object every few seconds, nothing; auto is a bar on a terminal."""

_LINE_INTERVAL_S = 5.0


class _NewReasons:
    """Finds the first failure of each new reason, unless --verbose prints all, or the run has ended and prints all."""

    def __init__(self) -> None:
        self._printed = 0

    def __call__(self, progress: Progress) -> list[Failure]:
        groups = progress.report.failure_groups
        prints_all = progress.ended or logging.getLogger("async_maps").isEnabledFor(logging.DEBUG)
        new = [] if prints_all else groups[self._printed :]
        self._printed = len(groups)
        return [group.examples[0] for group in new]


class LineDisplay:
    """Writes a line every few seconds, one for each new reason of failures, and one at the end of a run."""

    def __init__(self, out: TextIO, *, as_json: bool) -> None:
        self._out = out
        self._as_json = as_json
        self._new_reasons = _NewReasons()
        self._next_at = monotonic() + _LINE_INTERVAL_S

    def __call__(self, progress: Progress | Verification) -> None:
        """Write a line if it is time, or if maps fail for a new reason."""
        for failure in self._new_reasons(progress) if isinstance(progress, Progress) else ():
            self._print(json.dumps({"event": "new_reason", **asdict(failure)}) if self._as_json else _describe(failure))
        if isinstance(progress, Progress) and progress.ended:
            if not (progress.report.seen or progress.report.surveyed or self._as_json):
                return  # The error that ended the run before its first map is printed.
        elif monotonic() < self._next_at:
            return
        self._next_at = monotonic() + _LINE_INTERVAL_S
        self._print(json.dumps(progress.as_dict()) if self._as_json else progress.line())

    def _print(self, line: str) -> None:
        with suppress(OSError):  # a terminal that is gone is no reason to end the run
            print(line, file=self._out, flush=True)


def _describe(failure: Failure) -> str:
    return f"async-maps: failed (first for this reason): {failure}"


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
            for failure in self._new_reasons(progress):
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


def make_display(kind: ProgressKind, out: TextIO | None = None) -> OnProgress | None:
    """Make a display, on standard error by default; None for ``none``. Without a terminal, a bar becomes lines."""
    out = out or sys.stderr
    if kind in {"auto", "bar"}:
        kind = "bar" if out.isatty() and os.environ.get("TERM") != "dumb" else "log"
    if kind == "bar":
        return BarDisplay(out)
    return None if kind == "none" else LineDisplay(out, as_json=kind == "json")
