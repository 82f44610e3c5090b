"""``async-maps run``, and its signals."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter, validators

from async_maps.cli.console import (
    print_forgotten,
    print_report,
    say,
    set_verbosity,
    tell_start,
)
from async_maps.cli.displays import RunProgressKind, make_display
from async_maps.cli.events import tell
from async_maps.cli.interruption import handlers_restored, signals_to_hear
from async_maps.cli.options import (
    DEFAULT_MANIFEST,
    LOOPBACK,
    OUTPUT,
    WHAT,
    Flag,
    GroupedSettings,
    Quiet,
    Verbose,
)
from async_maps.cli.reports import check_report, write_report
from async_maps.cli.usage import MANIFEST_VARIABLE
from async_maps.concurrency.loop import fastest_loop
from async_maps.errors import AsyncMapsError, PipelineClosedError, SettingsError, StoreError
from async_maps.filesystems.filesystem import UnavailableError
from async_maps.filesystems.outputs import files_of_run
from async_maps.manifest.prune import Prune, Selection  # cyclopts reads the annotation
from async_maps.report import Report
from async_maps.report.ending import DONE, SOME_FAILED
from async_maps.settings import Settings
from async_maps.sources import is_stdin
from async_maps.suggestions import suggest

if TYPE_CHECKING:
    from async_maps.cli.metrics import MetricsOptions, RunMetrics
    from async_maps.manifest.manifest import Select
    from async_maps.pipeline import Pipeline
    from async_maps.progress import OnProgress, Progress


def run(  # noqa: PLR0913  # one argument per option
    source: str,
    destination: str,
    /,
    *,
    manifest: Annotated[Path, Parameter(group=WHAT, env_var=MANIFEST_VARIABLE, show_env_var=True)] = DEFAULT_MANIFEST,
    dry_run: Annotated[Flag, Parameter(group=WHAT)] = False,
    limit: Annotated[int | None, Parameter(group=WHAT)] = None,
    retry_failed: Annotated[Flag, Parameter(group=WHAT)] = False,
    prune: Annotated[Prune | None, Parameter(group=WHAT)] = None,
    prune_all: Annotated[Flag, Parameter(group=WHAT)] = False,
    overwrite: Annotated[Flag, Parameter(group=WHAT)] = False,
    config: Annotated[Path | None, Parameter(group=WHAT)] = None,
    progress: Annotated[RunProgressKind, Parameter(group=OUTPUT)] = "auto",
    report: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    metrics_port: Annotated[int | None, Parameter(group=OUTPUT, validator=validators.Number(gte=0, lte=65535))] = None,
    metrics_host: Annotated[str, Parameter(group=OUTPUT)] = LOOPBACK,
    metrics_textfile: Annotated[Path | None, Parameter(group=OUTPUT)] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
    settings: Annotated[GroupedSettings, Parameter(name="*")] = GroupedSettings(),  # noqa: B008  # frozen
) -> int:
    """Turn activation maps into PNG overlays in a store. Run it again to resume.

    ```
    async-maps run maps/ s3://my-bucket/overlays
    async-maps run maps/ overlays --colormap viridis --range per-map
    ```

    Unchanged maps that are in the manifest as done are skipped without a request.

    Ctrl-C, SIGTERM or a closed terminal finishes what is in flight; a second Ctrl-C or SIGTERM stops immediately. Run
    the same command again for the rest.

    Each setting is also an environment variable (`ASYNC_MAPS_PNG=rgba`) and a key of the TOML file (`png = "rgba"`).

    Parameters
    ----------
    source
        A folder (searched recursively), a file or a quoted glob of .npy, .npz, .pt, .png, .tif, .zarr, .h5, .nc, .mat,
        .safetensors, .parquet, .arrow or .tar; the same in s3://bucket/prefix/; a .csv, .jsonl or .parquet with the
        columns name and path; - for paths on standard input.
    destination
        s3://bucket/prefix, file:///folder or a path.
    manifest
        SQLite file with a row for each map; created if it does not exist.
    dry_run
        Say what the run would do, from names and headers, without reading values or writing anything.
    limit
        Try only the first N maps of the source. A later run without it does the rest. --range dataset still reads all
        maps for the range.
    retry_failed
        Try only the maps that failed before; the manifest must exist.
    overwrite
        Do all maps, also those that are done.
    prune
        After a whole run, forget maps that are no longer in the source: their rows, or rows and objects (overlays).
    prune_all
        Prune even if more than half of the overlays are of maps that are gone.
    config
        TOML file with settings; options and environment variables take precedence.
    progress
        A live bar; log: a line every few seconds; lanes: also one for each lane; json: every line on standard error is
        a JSON object; or none. auto is a bar on a terminal, else log.
    report
        JSON file for the result of the run.
    metrics_port
        Serve metrics for Prometheus at http://127.0.0.1:PORT/metrics while the run goes on (extra "metrics"); 0 for any
        free port.
    metrics_host
        Address of that server. 0.0.0.0 lets other machines read the metrics, as in Kubernetes.
    metrics_textfile
        Write the same metrics to this .prom file every 5 seconds, for node_exporter.
    """
    set_verbosity(verbose=verbose, quiet=quiet)
    if overwrite and retry_failed:
        raise SettingsError("--overwrite and --retry-failed exclude each other")
    files = files_of_run(manifest=manifest, config=config, source=source, destination=destination)
    check_report(report, files)
    if manifest == Path():
        raise SettingsError(f"the name of the manifest is empty: give --manifest FILE, or unset {MANIFEST_VARIABLE}")
    if is_stdin(destination):
        raise SettingsError("the destination is s3://bucket/prefix or a folder, not standard output")
    select: Select = "all" if overwrite else "failed" if retry_failed else "changed"
    Selection(source, manifest, select, limit, settings, prune, prune_all).check(destination)
    plain = settings.model_dump(mode="json")
    started = Report(destination=destination, settings=plain, limit=limit, dry_run=dry_run)
    metrics = None
    if not metrics_host:
        raise SettingsError("--metrics-host is empty: give an address, such as 127.0.0.1")
    if metrics_port is None and metrics_host != LOOPBACK:
        raise SettingsError("--metrics-host needs --metrics-port")
    if metrics_port is not None or metrics_textfile is not None:
        from async_maps.cli.metrics import MetricsOptions

        metrics = MetricsOptions(metrics_port, metrics_host, metrics_textfile)
        metrics.check(files if report is None else {**files, str(report): "the report"})
    job = _Job(source, destination, manifest, select, limit, prune, prune_all, started, metrics, settings)
    as_json = progress == "json" and not quiet
    tell_start(
        source=source, destination=destination, manifest=str(manifest), select=select, limit=limit, dry_run=dry_run
    )
    try:
        code = job.dry_run(as_json=as_json) if dry_run else job.run("none" if quiet else progress)
        code = write_report(report, job.report, code)
    except AsyncMapsError as error:
        done = error.report = error.report or job.report
        if done.uploaded or done.failed:
            print_report(done, None if dry_run else manifest, as_json=as_json)
        if isinstance(error, StoreError) and not isinstance(error, UnavailableError):
            error.add_note(f"to find the problem, run: {suggest('doctor', destination)}")
        raise
    except BaseException as error:
        error.report = job.report  # type: ignore[attr-defined]  # main() writes it
        raise
    return code


@dataclass
class _Job:
    """A run of the command, with its signals."""

    source: str
    destination: str
    manifest: Path
    select: Select
    limit: int | None
    prune: Prune | None
    prune_all: bool
    report: Report
    metrics: MetricsOptions | None
    settings: Settings
    interrupted_by: signal.Signals | None = None

    def run(self, progress: RunProgressKind) -> int:
        """Run the pipeline; return the exit code."""
        if reductions := self.settings.reductions:
            say("; ".join(reductions))
        # In this thread, because only the main thread gets signals.
        with handlers_restored(), asyncio.Runner(loop_factory=fastest_loop()) as runner:
            runner.run(self._run(make_display(progress)))
        printed = print_report(self.report, self.manifest, as_json=progress == "json")
        if self.interrupted_by is not None:
            self.report.end(KeyboardInterrupt(f"interrupted by {self.interrupted_by.name}"))
            say(f"interrupted by {self.interrupted_by.name}; run the same command again for the rest")
            return 128 + self.interrupted_by
        return self.report.exit_code or (DONE if printed else SOME_FAILED)

    async def _run(self, display: OnProgress | None) -> None:
        from async_maps.pipeline import Pipeline

        metrics: RunMetrics | None = None

        def show(progress: Progress) -> None:
            self.report = progress.report
            if metrics is not None:
                metrics.update(progress)
            if display is not None:
                display(progress)

        pipeline = Pipeline(self.destination, settings=self.settings)
        self._listen(pipeline)
        try:
            async with AsyncExitStack() as stack:
                if self.metrics is not None:
                    from async_maps.cli.metrics import RunMetrics

                    metrics = RunMetrics(pipeline, self.destination)
                    await stack.enter_async_context(metrics.exposed(self.metrics))
                await stack.enter_async_context(pipeline)
                self.report = await pipeline.run(
                    self.source,
                    manifest=self.manifest,
                    select=self.select,
                    limit=self.limit,
                    prune=self.prune,
                    prune_all=self.prune_all,
                    on_progress=show,
                )
        except (asyncio.CancelledError, PipelineClosedError) as error:
            if self.interrupted_by is None:
                raise
            if isinstance(error, PipelineClosedError):
                self.report = error.report or self.report

    def dry_run(self, *, as_json: bool) -> int:
        """Print what would be done; return the exit code."""
        from async_maps.batch import dry_run

        self.report = dry_run(
            self.source,
            self.destination,
            settings=self.settings,
            manifest=self.manifest,
            select=self.select,
            limit=self.limit,
            prune=self.prune,
            prune_all=self.prune_all,
        )
        print_forgotten(self.report)
        printed = print_report(self.report, None, as_json=as_json)
        if self.settings.if_exists != "overwrite":
            say(f"objects that exist at the destination are not looked up (if_exists: {self.settings.if_exists})")
        return self.report.exit_code or (DONE if printed else SOME_FAILED)

    def _listen(self, pipeline: Pipeline) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  # inside asyncio.run

        def on_signal(number: signal.Signals) -> None:
            first = self.interrupted_by is None
            self.interrupted_by = self.interrupted_by or number
            if first and pipeline.is_open:
                pipeline.drain()
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
