"""Checks whether this machine can write to a destination, and whether a browser can read it.

The answer to each check is a finding, with advice. Runs on the event loop; disks are checked in a thread.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import TYPE_CHECKING

from anyio import move_on_after, to_thread

from async_maps.blocking import blocking
from async_maps.doctor.finding import Finding, OnFinding
from async_maps.doctor.machine import check_machine
from async_maps.errors import SettingsError
from async_maps.filesystems.addresses import is_in_s3, is_remote
from async_maps.masking import mask
from async_maps.settings import Settings, given_or_default

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KOLENA_ORIGINS", "Finding", "adiagnose", "diagnose"]

KOLENA_ORIGINS = ("https://app.kolena.com", "https://app.kolena.io")
"""The origins of Kolena's Studio, whose pages read the overlays."""

_LIMIT_S = 60.0
"""The time limit of all checks together."""


async def adiagnose(
    destination: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    origins: Sequence[str] = KOLENA_ORIGINS,
    quick: bool = False,
    on_finding: OnFinding | None = None,
) -> list[Finding]:
    """Check everything that a run and its readers need, with small objects that are deleted at the end.

    A problem of the destination is a finding, not an exception. Checks that depend on a failed one are skipped.

    Args:
        destination: ``s3://bucket/prefix``, ``gs://bucket/prefix``, ``az://container/prefix``, ``file:///folder`` or a
            plain path.
        settings: the settings of the planned run, such as headers and concurrency. Time-outs are at most 5 seconds.
        origins: the origins of web pages that will read the overlays.
        quick: skip the throughput, which takes at least two seconds.
        on_finding: called with each finding, on the event loop.

    Returns:
        The findings, in the order of the checks.

    Raises:
        SettingsError: the destination is unknown or incomplete, or an origin is not valid.
    """
    settings = given_or_default(settings)
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        # Those of the machine come first, but not before the destination is known to be valid.
        for each in [*([] if findings else check_machine(settings)), finding]:
            findings.append(each._replace(text=mask(each.text), advice=mask(each.advice)))
            if on_finding is not None:
                on_finding(findings[-1])

    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise SettingsError(f"{origin!r} is not an origin; expected https://host, without a slash at its end")
    place = os.fspath(destination)
    with move_on_after(_LIMIT_S) as limit:
        if is_remote(place):
            # In a thread: the import takes half a second.
            name = "async_maps.doctor.s3" if is_in_s3(place) else "async_maps.doctor.service"
            checks = await to_thread.run_sync(import_module, name)
            await checks.examine(place, settings, (origins, quick), found)
        else:
            from async_maps.doctor.folder import examine

            await examine(place, settings, found)
    if limit.cancelled_caught:
        found(Finding("time", "failure", f"not done in {_LIMIT_S:.0f} s", "run it again when the store is faster"))
    return findings


diagnose = blocking(adiagnose)
"""Check everything that a run and its readers need, with small objects that are deleted at the end."""
