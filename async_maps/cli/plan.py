"""``async-maps plan`` and ``async-maps commit``."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from async_maps.cli.console import answer, say, set_verbosity
from async_maps.cli.options import OF_S3, OUTPUT, WHAT, Flag, GroupedSettings, Quiet, Verbose
from async_maps.concurrency.loop import run_blocking
from async_maps.masking import masked_json
from async_maps.report import counted
from async_maps.report.ending import DONE, SOME_FAILED, STOPPED_EARLY
from async_maps.settings import S3Settings, Settings
from async_maps.suggestions import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from async_maps.plans.commits import PlanStatus

_EVERY_S = 5.0
_SHOWN = 5


def plan(  # noqa: PLR0913  # one argument per option
    source: str,
    destination: str,
    /,
    *,
    to: Annotated[str, Parameter(group=WHAT)],
    part_size: Annotated[int, Parameter(group=WHAT)] = 10_000,
    since: Annotated[str | None, Parameter(group=WHAT)] = None,
    config: Annotated[Path | None, Parameter(group=WHAT)] = None,  # main() reads it
    verbose: Verbose = False,
    quiet: Quiet = False,
    settings: Annotated[GroupedSettings, Parameter(name="*")] = GroupedSettings(),  # noqa: B008  # frozen
) -> int:
    """Share a source out in parts, which any number of machines can run, kill and repeat.

    ```
    async-maps plan maps/ overlays --to plan
    async-maps plan s3://my-bucket/maps/ s3://my-bucket/out --to s3://plans/1
    ```

    Then run its shares, `async-maps run --plan PLAN --part I/N`, and `async-maps commit PLAN`.

    A plan is made once: a second call changes nothing. With another source, destination or setting, it is refused.

    With `--range dataset`, survey the shares first: `async-maps run --plan PLAN --part I/N --survey`. When all of them
    have ended, call `plan` again: it finds the range.

    Parameters
    ----------
    source
        A folder, a file, a glob or a table, as for run. Files are listed, not opened.
    destination
        s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder or a path for the overlays.
    to
        Where the plan goes: an empty folder or prefix, which all machines reach.
    part_size
        Files of a part, or maps of a large stack.
    since
        Address of an earlier plan, for a nightly job. Files that it has done, or a plan before it, are left out, if
        they have not changed, and the destination and the settings are the same. Files with failed maps stay. If
        nothing is new, the plan has no parts: run does nothing, commit declares it done, and both exit with 0.
    config
        TOML file with settings; options and environment variables take precedence.
    """
    from async_maps.plans.planning import make_plan

    set_verbosity(verbose=verbose, quiet=quiet)
    making = make_plan(
        source,
        destination,
        to,
        settings=settings,
        part_size=part_size,
        since=since,
        on_progress=None if quiet else _telling(),
    )
    found = run_blocking(lambda: making)
    made = found.plan
    if not found.is_new:
        say(f"{to} has a plan already, made at {made.created_at}; it was not changed")
    if found.passed_over:
        say(found.passed_over)
    shown = f"{made.size / 1e9:,.1f} GB" if made.size >= 1e9 else f"{made.size / 1e6:,.1f} MB"
    size = f", {shown}" if made.size else ""
    left_out = f"; left out, because {made.since} has done them: {counted(made.left_out, 'file')}" if made.since else ""
    told = [f"{counted(made.parts, 'part')} of {counted(made.files, 'file')}{size}{left_out}"]
    run = ("run", "--plan", to, "--part", "I/N")
    if found.found_range:
        told.append(f"all parts are surveyed: colors span {found.found_range.replace(',', ' to ')}")
    if found.unsurveyed:
        told += [] if found.is_new else [f"not surveyed: {_some(found.unsurveyed)}"]
        told.append(f"survey each share: {suggest(*run, '--survey')}; then call plan again")
    elif made.parts:
        told.append(f"run each share: {suggest(*run)}")
    printed = answer("; ".join(told))
    if found.unsurveyed and not found.is_new:
        return STOPPED_EARLY
    return DONE if printed else SOME_FAILED


def commit(
    plan: str,
    /,
    *,
    as_json: Annotated[Flag, Parameter("--json", group=OUTPUT)] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
    s3: Annotated[S3Settings, Parameter(group=OF_S3)] = S3Settings(),  # noqa: B008  # frozen
) -> int:
    """Declare a plan done, when all of its parts are.

    ```
    async-maps commit s3://my-bucket/plan
    async-maps commit plan --json
    ```

    It writes an object that names the manifest of each part. If a part is missing, it names that and writes nothing.

    Parameters
    ----------
    plan
        The address of the plan.
    as_json
        Print a JSON object.
    """
    from async_maps.plans.commits import commit_plan

    set_verbosity(verbose=verbose, quiet=quiet)
    return print_plan(commit_plan(plan, settings=Settings(s3=s3)), as_json=as_json)


def print_plan(found: PlanStatus, *, as_json: bool) -> int:
    """Print how far a plan is; return the exit code."""
    printed = answer(masked_json(found.as_dict()) if as_json else "\n".join(_lines(found)))
    if not found.is_complete:
        return STOPPED_EARLY
    if found.failures:
        say(f"to list the failed maps: {suggest('export', found.plan, 'failures.csv', '--failed')}")
        again = suggest("run", "--plan", found.plan, "--retry-failed")
        say(f"to try them again: {again}; files that have changed need another plan")
    return DONE if printed and not found.failures else SOME_FAILED


def _lines(found: PlanStatus) -> list[str]:
    parts = f"{found.committed:,} of {counted(found.parts, 'part')} committed"
    lines = [f"{found.plan}: {parts}: {counted(found.rows - found.failures, 'map')} done, {found.failures:,} failed"]
    if not found.is_complete:
        missing = _some(found.missing, found.parts - found.committed)
        lines.append(f"missing: {missing}; {found.started:,} of them were started")
    elif found.commits:
        lines.append(f"committed as _SUCCESS-{found.commits}")
    else:
        lines.append(f"the plan itself is not committed yet: {suggest('commit', found.plan)}")
    return lines


def _some(parts: Sequence[int], total: int | None = None) -> str:
    """Return the first parts, and how many more there are."""
    total = len(parts) if total is None else total
    shown = [f"{part:,}" for part in parts[:_SHOWN]]
    more = f" and {total - len(shown):,} more" if total > len(shown) else ""
    return f"{'part' if total == 1 else 'parts'} {', '.join(shown)}{more}"


def _telling() -> Callable[[int], None]:
    told_at = monotonic()

    def tell(count: int) -> None:
        nonlocal told_at
        if monotonic() - told_at >= _EVERY_S:
            told_at = monotonic()
            say(f"listed {counted(count, 'file')}")

    return tell
