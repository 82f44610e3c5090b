"""Masks as JSON, and manifests for them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import async_maps as am
from async_maps.manifest.manifest import Manifest

COUNTED = am.MapStatistics(0.0, 1.0, 0.5, 0.0, 1.0, 0.25, 7.5, 1.0, 2.0, 0, False, False, False)
UNCOUNTED = am.MapStatistics(None, None, None, None, None, None, None, None, None, 600, False, True, False)
TYPED = {"data_type": "ANNOTATION/BITMAP_MASK"}


def receipt(name: str, statistics: am.MapStatistics = COUNTED) -> am.Receipt:
    """Return the receipt of an overlay."""
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    return am.Receipt(name, f"s3://bucket/o/{name}.png", name, None, 100, 30, 20, "tag", noon, statistics, "00c0ffee")


def write_manifest(path: Path, *outcomes: am.Receipt | am.Failure) -> Path:
    """Write a manifest of these outcomes and return its path."""
    with Manifest(path) as manifest:
        manifest.begin("s3://bucket/o")
        manifest.write(outcomes, "settings")
    return path


def wire(mask: Any) -> Any:
    """Return the JSON of a mask, a list of masks or None."""
    if isinstance(mask, list):
        return [wire(part) for part in mask]
    return dict(mask) if isinstance(mask, dict) else mask and dict(mask._to_dict())
