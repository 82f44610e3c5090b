"""The job of ``async-maps run``, a pipeline or a share of a plan: its signals, its display, metrics and report."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from async_maps.cli.console import print_report, say
from async_maps.cli.displays import RunProgressKind, make_display
from async_maps.cli.events import tell
from async_maps.cli.interruption import handlers_restored, signals_to_hear
from async_maps.cli.options import LOOPBACK
from async_maps.cli.reports import check_report, write_report
from async_maps.concurrency.loop import fastest_loop
from async_maps.errors import AsyncMapsError, PipelineClosedError, SettingsError, StoreError
from async_maps.filesystems.filesystem import UnavailableError
from async_maps.report.ending import DONE, SOME_FAILED
from async_maps.suggestions import suggest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping
    from os import PathLike

    from async_maps.cli.metrics import MetricsOptions, RunMetrics
    from async_maps.progress import OnProgress, Progress
    from async_maps.report import Report
    from async_maps.stages.meters import Statistics


class Drainable(Protocol):
    """A pipeline, or a share of a plan."""

    @property
    def is_open(self) -> bool:
        """Whether it can be drained."""

    def drain(self) -> None:
        """Finish what is in flight, and begin nothing more."""

    def statistics(self) -> Statistics:
        """Return the current statistics."""


class Outputs(NamedTuple):
    """Where the progress, the report and the metrics of a run go.

    Attributes:
        progress: the kind of display.
        report: the file of the report; None for no report.
        metrics_port: the port of the metrics; None for no server.
        metrics_host: its address.
        metrics_textfile: the file of the metrics; None for no file.
    """

    progress: RunProgressKind
    report: Path | None
    metrics_port: int | None
    metrics_host: str
    metrics_textfile: Path | None

    @property
    def as_json(self) -> bool:
        """Whether every line on standard error is a JSON object."""
        return self.progress == "json"

    @property
    def metrics(self) -> MetricsOptions | None:
        """Where the metrics go; None if nowhere."""
        if self.metrics_port is None and self.metrics_textfile is None:
            return None
        from async_maps.cli.metrics import MetricsOptions

        return MetricsOptions(self.metrics_port, self.metrics_host, self.metrics_textfile)

    def check(self, files: Mapping[str, str]) -> None:
        """Check before a run that its report and its metrics can be written.

        Args:
            files: the files of the run, which they must not replace.

        Raises:
            SettingsError: an output cannot be written, would replace another file, or options do not fit together.
        """
        check_report(self.report, files)
        if not self.metrics_host:
            raise SettingsError("--metrics-host is empty: give an address, such as 127.0.0.1")
        if self.metrics_port is None and self.metrics_host != LOOPBACK:
            raise SettingsError("--metrics-host needs --metrics-port")
        if (metrics := self.metrics) is not None:
            metrics.check({**files, str(self.report): "the report"} if self.report is not None else files)


@dataclass
class Job:
    """A run of the command, with its signals.

    Attributes:
        label: its name in metrics.
        report: the report so far.
        outputs: where its progress, its report and its metrics go.
        interrupted_by: the first signal; None if there was none.
    """

    label: str
    report: Report
    outputs: Outputs
    interrupted_by: signal.Signals | None = None

    def run(self, worker: Drainable, work: Callable[[OnProgress], Awaitable[None]]) -> None:
        """Work until the end, or until a signal has ended it.

        Args:
            worker: what is drained by a signal, and measured.
            work: does the work, calls its argument with the progress, and keeps the report.
        """
        # In this thread, because only the main thread gets signals.
        with handlers_restored(), asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(self._run(worker, work))

    def end(self, printed: bool) -> int:
        """Write the report; return the exit code, which tells of a signal, too.

        Args:
            printed: whether standard output has taken the result.
        """
        code = self.report.exit_code or (DONE if printed else SOME_FAILED)
        if self.interrupted_by is not None:
            code = 128 + self.interrupted_by
            self.report.end(KeyboardInterrupt(f"interrupted by {self.interrupted_by.name}"))
            say(f"interrupted by {self.interrupted_by.name}; run the same command again for the rest")
        return self.write_report(code)

    def write_report(self, code: int) -> int:
        """Write the report; return the exit code, which changes if that fails."""
        return write_report(self.outputs.report, self.report, code)

    @contextmanager
    def explaining_errors(self, destination: str, manifest: PathLike[str] | str | None) -> Iterator[None]:
        """Give errors the report, print what was done before them, and say how to find a problem of the store.

        Args:
            destination: where the store is looked for.
            manifest: the manifest that has all failures; None if there is none.
        """
        try:
            yield
        except AsyncMapsError as error:
            done = error.report = error.report or self.report
            if done.uploaded or done.failed:
                print_report(done, None if manifest is None else Path(manifest), as_json=self.outputs.as_json)
            if isinstance(error, StoreError) and not isinstance(error, UnavailableError):
                error.add_note(f"to find the problem, run: {suggest('doctor', destination)}")
            raise
        except BaseException as error:
            error.report = self.report  # type: ignore[attr-defined]  # main() writes it
            raise

    async def _run(self, worker: Drainable, work: Callable[[OnProgress], Awaitable[None]]) -> None:
        display, options = make_display(self.outputs.progress), self.outputs.metrics
        metrics: RunMetrics | None = None

        def show(progress: Progress) -> None:
            self.report = progress.report
            if metrics is not None:
                metrics.update(progress)
            if display is not None:
                display(progress)

        self._listen(worker)
        try:
            async with AsyncExitStack() as stack:
                if options is not None:
                    from async_maps.cli.metrics import RunMetrics

                    metrics = RunMetrics(worker, self.label)
                    await stack.enter_async_context(metrics.exposed(options))
                await work(show)
        except (asyncio.CancelledError, PipelineClosedError) as error:
            if self.interrupted_by is None:
                raise
            if isinstance(error, PipelineClosedError):
                self.report = error.report or self.report

    def _listen(self, worker: Drainable) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # inside asyncio.run

        def on_signal(number: signal.Signals) -> None:
            first = self.interrupted_by is None
            self.interrupted_by = self.interrupted_by or number
            if first and worker.is_open:
                worker.drain()
                again = "send SIGTERM" if number is signal.SIGHUP else "repeat it"
                say(
                    f"{number.name}: finishing the maps in flight; {again} to stop immediately",
                    "signal",
                    signal=number.name,
                )
            elif first or number is not signal.SIGHUP:  # a terminal that closes sends it twice
                tell("signal", f"{number.name}: stopping immediately", signal=number.name)
                task.cancel()

        for number in signals_to_hear():
            loop.add_signal_handler(number, on_signal, number)
