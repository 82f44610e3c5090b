"""``async-maps status``."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from async_maps.cli.console import answer, failure_lines, say_how_to_list, set_verbosity
from async_maps.cli.options import OUTPUT, Flag, Quiet, Verbose
from async_maps.cli.plan import print_plan
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.locators import file_path
from async_maps.masking import masked_json
from async_maps.progress import duration
from async_maps.report.ending import DONE, SOME_FAILED, STOPPED_EARLY

if TYPE_CHECKING:
    from async_maps.manifest.status import ManifestStatus


def status(
    manifest: str,
    /,
    *,
    as_json: Annotated[Flag, Parameter("--json", group=OUTPUT)] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> int:
    """Say how far a run or a plan is, from another terminal and without disturbing it, or how the last run ended.

    ```
    async-maps status async-maps.sqlite
    async-maps status s3://my-bucket/plan --json
    ```

    To repeat it, use watch: `watch -n 5 async-maps status async-maps.sqlite`.

    Parameters
    ----------
    manifest
        Manifest of a run; or the address of a plan: a folder, or s3://bucket/prefix, gs:// or az://.
    as_json
        Print a JSON object.
    """
    from async_maps.manifest.status import status as read_status

    set_verbosity(verbose=verbose, quiet=quiet)
    if is_remote(manifest) or os.path.isdir(file_path(manifest) or manifest):
        from async_maps.plans.commits import plan_status

        return print_plan(plan_status(manifest), as_json=as_json)
    found = read_status(manifest)
    printed = answer(masked_json(found.as_dict()) if as_json else "\n".join(_lines(found)))
    if not as_json:
        say_how_to_list(found.failed, Path(manifest))
    if found.state in {"stopped", "lost"}:
        return STOPPED_EARLY
    return DONE if printed and not found.failed else SOME_FAILED


def _lines(found: ManifestStatus) -> list[str]:
    lines = [f"{found.manifest}: {_state(found)}"]
    if found.destination is not None:
        lines.append(f"{found.done:,} done, {found.failed:,} failed, in {found.destination}")
    if found.started_at is not None:
        lines += _run(found)
    return [*lines, *failure_lines(found.failure_groups, found.ungrouped)]


def _state(found: ManifestStatus) -> str:
    from async_maps.manifest.status import STALE_S

    locked = "" if found.writer is None else f"; locked by {found.writer or 'a process'}"
    if found.state == "running":
        running = f"running ({found.writer})" if found.writer else "running"
        silent_s = 0.0 if found.last_write_at is None else _age_s(found.last_write_at)
        return f"{running}, but it has written nothing for {duration(silent_s)}" if silent_s > STALE_S else running
    if found.state == "empty":
        return f"no run yet{locked}"
    if found.state == "lost":
        return (
            "not running on this machine, and the last run did not record its end: it was killed, it runs on another "
            "machine, or this is a copy"
        )
    ended = "the last run is complete" if found.state == "complete" else "the last run stopped early; run it again"
    error = "" if found.error is None else f" ({found.error['message']})"
    return f"not running; {ended}{error}{locked}"


def _run(found: ManifestStatus) -> list[str]:
    counts = f"{found.uploaded:,} uploaded, {found.skipped:,} skipped, {found.newly_failed:,} failed"
    if found.surveyed and not found.seen:
        total = "" if found.total is None else f" of {found.total:,}"
        counts = f"first pass, for range dataset: {found.surveyed:,}{total} maps"
    elif found.total is not None:
        counts = f"{found.seen:,} of {found.total:,} maps: {counts}"
    else:
        counts = f"{found.seen:,} of at least {found.listed:,} maps: {counts}"
    lines = [f"run of {found.source or 'maps in memory'}, since {found.started_at}: {counts}"]
    if found.maps_per_s is not None:
        lines.append(f"{found.maps_per_s:,.1f} maps/s{_eta(found) if found.state == 'running' else ' at its end'}")
    if found.slowest_stage is not None:
        busy = f"slowest stage: {found.slowest_stage}, busy {found.busy[found.slowest_stage]:.0%} of the time"
        queues = " ".join(f"{name} {share:.0%}" for name, share in found.queues.items())
        lines.append(f"{busy}; queues: {queues}" if found.state == "running" else busy)
    if found.upload_rate is not None:
        lines.append(f"uploads are limited to {found.upload_rate:,.1f} a second")
    if found.retries:
        lines.append(f"retried uploads: {found.retries:,}")
    if found.last_write_at is not None and found.last_progress_at is not None:
        lines.append(f"last write {_ago(found.last_write_at)}, last progress {_ago(found.last_progress_at)}")
    return lines


def _eta(found: ManifestStatus) -> str:
    if found.eta_s is not None:
        return f", ETA {duration(found.eta_s)}"
    return ", ETA unknown" + ("" if found.total is not None else ": the maps of the source are not counted")


def _ago(time: str) -> str:
    return f"{duration(_age_s(time))} ago"


def _age_s(time: str) -> float:
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds())
