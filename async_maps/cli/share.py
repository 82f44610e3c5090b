"""``async-maps run --plan``: a share of the parts of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.cli.console import print_report, say, tell_start
from async_maps.cli.job import Job
from async_maps.errors import SettingsError
from async_maps.plans.schedulers import share_of
from async_maps.suggestions import suggest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from async_maps.cli.job import Outputs
    from async_maps.progress import OnProgress
    from async_maps.settings import Settings
    from async_maps.shares.engine import EngineName


def check_share(given: Mapping[str, bool], source: str | None, part: str | None) -> tuple[int, int]:
    """Check the command line of a share; return which share of how many.

    Args:
        given: options that a share cannot have, and whether each was given.
        source: the first of SOURCE and DESTINATION; None without.
        part: the value of ``--part``; None for all parts.

    Raises:
        SettingsError: an argument does not fit, or there is no such share.
    """
    if source is not None:
        raise SettingsError(f"unexpected {source!r}: --plan has a source and a destination; leave them out")
    if others := [name for name, is_given in given.items() if is_given]:
        raise SettingsError(
            f"{' and '.join(others)} cannot be used with --plan: a share runs whole parts, each with a manifest in the "
            "plan's place"
        )
    return share_of(part or "1/1")


def run_share(  # noqa: PLR0913  # one argument per option
    plan: str,
    part: tuple[int, int],
    settings: Settings,
    outputs: Outputs,
    *,
    engine: EngineName,
    address: str | None,
    retry_failed: bool,
    survey: bool,
) -> int:
    """Run a share of a plan on an engine, or its failed maps again, or survey it; return the exit code."""
    from async_maps.shares.share import Share

    share = Share(
        plan, part, settings=settings, engine=engine, address=address, retry_failed=retry_failed, survey=survey
    )
    job = Job(plan, share.report, outputs)
    tell_start(plan=plan, part=list(part), retry_failed=retry_failed, survey=survey)
    with job.explaining_errors(plan, None):

        async def work(on_progress: OnProgress) -> None:
            job.report = await share.run(on_progress)

        if engine == "local" and (reductions := settings.reductions):
            say("; ".join(reductions))
        job.run(share, work)
        printed = print_report(job.report, None, as_json=outputs.as_json)
        if job.report.complete:
            say(
                "when all shares have ended, call async-maps plan again: it finds the range"
                if survey
                else f"when all shares have ended: {suggest('commit', plan)}"
            )
        return job.end(printed)
