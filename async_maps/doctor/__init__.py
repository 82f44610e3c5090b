"""Can this machine write there, and can a browser read it? Each question is a finding, with what to do about it.

Runs on the event loop; what asks a disk runs in a thread.
"""

from __future__ import annotations

import os
import re
from importlib import import_module
from typing import TYPE_CHECKING

from anyio import move_on_after, to_thread

from async_maps.blocking import blocking
from async_maps.doctor.finding import Finding, OnFinding
from async_maps.errors import SettingsError
from async_maps.filesystems.filesystem import is_remote
from async_maps.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["KOLENA_ORIGINS", "Finding", "adiagnose", "diagnose"]

KOLENA_ORIGINS = ("https://app.kolena.com", "https://app.kolena.io")
"""Where Kolena's Studio runs: pages of these origins read the overlays."""

_LIMIT_S = 60.0
"""It ends by then, whatever the store does."""


async def adiagnose(
    destination: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    origins: Sequence[str] = KOLENA_ORIGINS,
    quick: bool = False,
    on_finding: OnFinding | None = None,
) -> list[Finding]:
    """Try with a small object of our own, which is removed again, whatever a run and its readers will want.

    What is broken there is a finding and no exception; what makes no sense after it is left out.

    Args:
        destination: ``s3://bucket/prefix``, ``file:///folder`` or a plain path.
        settings: those of the run to come: its headers, its concurrency, its patience as far as that is short.
        origins: whose pages are to read the overlays in a browser.
        quick: leave out the throughput, which takes two seconds and more.
        on_finding: called with each finding when it is made, on the event loop.

    Returns:
        The findings, in the order in which they were made.

    Raises:
        SettingsError: the destination is of no kind that can be looked at, or incomplete; or that is no origin.
    """
    settings = settings or Settings()
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        if on_finding is not None:
            on_finding(finding)

    for origin in origins:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise SettingsError(f"{origin!r} is no origin; expected https://host, without a slash at its end")
    place = os.fspath(destination)
    with move_on_after(_LIMIT_S) as limit:
        if is_remote(place):
            # Half a second.
            s3 = await to_thread.run_sync(import_module, "async_maps.doctor.s3")
            await s3.examine(place, settings, (origins, quick), found)
        else:
            from async_maps.doctor.folder import examine

            await examine(place, settings, found)
    if limit.cancelled_caught:
        found(Finding("time", "failure", f"not done within {_LIMIT_S:.0f} s", "try again when the store is faster"))
    return findings


diagnose = blocking(adiagnose)
"""Try whether this machine can write to a destination, and a browser can read it."""
