"""What a doctor has found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.doctor import Finding

if TYPE_CHECKING:
    pass


def levels(found: dict[str, Finding]) -> dict[str, str]:
    """What is not as it should be."""
    return {check: finding.level for check, finding in found.items() if finding.level != "ok"}
