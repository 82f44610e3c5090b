"""``async-maps run``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from cyclopts import Parameter, validators

from async_maps.cli.console import print_forgotten, print_report, say, set_verbosity, tell_start
from async_maps.cli.displays import RunProgressKind
from async_maps.cli.job import Job, Outputs
from async_maps.cli.options import (
    DEFAULT_MANIFEST,
    LOOPBACK,
    OUTPUT,
    PLANS,
    WHAT,
    Flag,
    GroupedSettings,
    Quiet,
    Verbose,
)
from async_maps.cli.share import check_share, run_share
from async_maps.cli.usage import MANIFEST_VARIABLE
from async_maps.concurrency.launch import resume_collection
from async_maps.errors import SettingsError
from async_maps.filesystems.locators import EXPECTED
from async_maps.filesystems.outputs import files_of_run
from async_maps.manifest.prune import Prune, Selection  # cyclopts reads the annotation
from async_maps.report import Report
from async_maps.report.ending import DONE, SOME_FAILED
from async_maps.sources import is_stdin

if TYPE_CHECKING:
    from async_maps.manifest.manifest import Select
    from async_maps.progress import OnProgress


def run(  # noqa: PLR0913  # one argument per option
    source: str | None = None,
    destination: str | None = None,
    /,
    *,
    plan: Annotated[str | None, Parameter(group=PLANS)] = None,
    part: Annotated[str | None, Parameter(group=PLANS)] = None,
    engine: Annotated[Literal["local", "ray"], Parameter(group=PLANS)] = "local",
    address: Annotated[str | None, Parameter(group=PLANS)] = None,
    manifest: Annotated[Path, Parameter(group=WHAT, env_var=MANIFEST_VARIABLE, show_env_var=True)] = DEFAULT_MANIFEST,
    dry_run: Annotated[Flag, Parameter(group=WHAT)] = False,
    limit: Annotated[int | None, Parameter(group=WHAT)] = None,
    retry_failed: Annotated[Flag, Parameter(group=WHAT)] = False,
    survey: Annotated[Flag, Parameter(group=PLANS)] = False,
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
        .safetensors, .parquet, .arrow or .tar; the same below s3://, gs:// or az://; a .csv, .jsonl or .parquet
        with the columns name and path; - for paths on standard input.
    destination
        s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder or a path.
    plan
        Address of the plan: it has the source, the destination, and the settings that shape the overlays.
    part
        Which share of how many, such as 3/8; auto/8 or auto in an array job of Kubernetes, Slurm or AWS Batch. Without
        it, all parts.
    engine
        What runs the parts of a plan: this process, or a Ray cluster (extra "ray").
    address
        Address of the Ray cluster: auto, HOST:PORT or ray://HOST:PORT. By default that of RAY_ADDRESS; without it, a
        cluster of this machine, which ends with the run.
    manifest
        SQLite file with a row for each map; created if it does not exist.
    dry_run
        Say what the run would do, from names and headers, without reading values or writing anything.
    limit
        Try only the first N maps of the source. A later run without it does the rest. --range dataset still reads all
        maps for the range.
    retry_failed
        Try only the maps that failed before; the manifest must exist. With --plan: those of the share's committed
        parts. Then commit the plan again.
    survey
        Only read the maps of a plan with range dataset; then call plan again, which finds the range.
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
    files = files_of_run(
        manifest=manifest if plan is None else None, config=config, source=source or "", destination=destination or ""
    )
    outputs = Outputs("none" if quiet else progress, report, metrics_port, metrics_host, metrics_textfile)
    if plan is not None:
        # An image may set the variable for all of its runs.
        is_manifest_given = str(manifest) not in {str(DEFAULT_MANIFEST), os.environ.get(MANIFEST_VARIABLE)}
        given = {
            "--manifest": is_manifest_given, "--dry-run": dry_run, "--limit": limit is not None,
            "--prune": prune is not None, "--prune-all": prune_all, "--overwrite": overwrite,
        }  # fmt: skip
        share = check_share(given, source, part)
        resume_collection()
        outputs.check(files)
        return run_share(
            plan, share, settings, outputs, engine=engine, address=address, retry_failed=retry_failed, survey=survey
        )
    for name, is_given, example in (
        ("--part", part is not None, "--part I/N"),
        ("--survey", survey, "--part I/N --survey"),
        ("--engine", engine != "local", f"--engine {engine}"),
        ("--address", address is not None, "--engine ray --address ADDRESS"),
    ):
        if is_given:
            raise SettingsError(f"{name} needs --plan: async-maps run --plan PLAN {example}")
    if source is None or destination is None:
        missing = "SOURCE and DESTINATION are" if source is None else "DESTINATION is"
        raise SettingsError(f"{missing} missing: async-maps run SOURCE DESTINATION, or async-maps run --plan PLAN")
    outputs.check(files)
    if manifest == Path():
        raise SettingsError(f"the name of the manifest is empty: give --manifest FILE, or unset {MANIFEST_VARIABLE}")
    if is_stdin(destination):
        raise SettingsError(f"the destination cannot be standard output; expected {EXPECTED}")
    select: Select = "all" if overwrite else "failed" if retry_failed else "changed"
    selection = Selection(source, manifest, select, limit, settings, prune, prune_all)
    selection.check(destination)
    return _run(selection, destination, outputs, dry_run=dry_run)


def _run(selection: Selection, destination: str, outputs: Outputs, *, dry_run: bool) -> int:
    source, manifest, limit, settings = selection.source, selection.manifest, selection.limit, selection.settings
    select = cast("Select", selection.mode)
    plain = settings.model_dump(mode="json")
    job = Job(destination, Report(destination=destination, settings=plain, limit=limit, dry_run=dry_run), outputs)
    shown = {"source": source, "destination": destination, "manifest": str(manifest), "select": select}
    tell_start(**shown, limit=limit, dry_run=dry_run)
    with job.explaining_errors(destination, None if dry_run else manifest):
        if dry_run:
            resume_collection()
            return job.write_report(_dry_run(job, selection, select, destination))
        from async_maps.pipeline import Pipeline

        pipeline = Pipeline(destination, settings=settings)

        async def put(on_progress: OnProgress) -> None:
            async with pipeline:
                resume_collection()
                job.report = await pipeline.run(
                    source,
                    manifest=manifest,
                    select=select,
                    limit=limit,
                    prune=selection.prune,
                    prune_all=selection.prune_all,
                    on_progress=on_progress,
                )

        if reductions := settings.reductions:
            say("; ".join(reductions))
        job.run(pipeline, put)
        return job.end(print_report(job.report, Path(manifest or ""), as_json=outputs.as_json))


def _dry_run(job: Job, selection: Selection, select: Select, destination: str) -> int:
    """Print what would be done; return the exit code."""
    from async_maps.batch import dry_run

    job.report = dry_run(
        selection.source,
        destination,
        settings=selection.settings,
        manifest=selection.manifest,
        select=select,
        limit=selection.limit,
        prune=selection.prune,
        prune_all=selection.prune_all,
    )
    print_forgotten(job.report)
    printed = print_report(job.report, None, as_json=job.outputs.as_json)
    if selection.settings.if_exists != "overwrite":
        say(f"objects that exist at the destination are not looked up (if_exists: {selection.settings.if_exists})")
    return job.report.exit_code or (DONE if printed else SOME_FAILED)
