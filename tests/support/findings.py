"""Findings of the doctor."""

from __future__ import annotations

from async_maps.doctor import Finding


def levels(found: dict[str, Finding]) -> dict[str, str]:
    """Return the levels of all findings that are not "ok"."""
    return {check: finding.level for check, finding in found.items() if finding.level != "ok"}
