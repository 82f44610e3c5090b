"""Findings of the doctor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.doctor import Finding

if TYPE_CHECKING:
    pass


def levels(found: dict[str, Finding]) -> dict[str, str]:
    """Return the levels of all findings that are not "ok"."""
    return {check: finding.level for check, finding in found.items() if finding.level != "ok"}
