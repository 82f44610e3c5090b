"""Rows of a manifest, written without a run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_maps.manifest.manifest import Manifest
from async_maps.manifest.schema import COLUMNS
from async_maps.outcomes import Failure, MapStatistics, Outcome, Receipt
from async_maps.settings import Settings
from async_maps.sources.activation_map import ActivationMap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from async_maps.manifest.manifest import Plan, Select
    from async_maps.outcomes import Stage

DESTINATION = "s3://bucket/prefix"
SETTINGS = Settings().fingerprint()
_NOON = datetime(2026, 1, 2, 12, 0, 0, 250_000, tzinfo=UTC)
COUNTED = MapStatistics(-1.5, 2.0, 0.25, -1.0, 1.0, 0.5, 7.25, 1.5, 0.5, 3, False, False, True)


def make_map(name: str, *, source: str | None = None, fingerprint: str | None = "1-1") -> ActivationMap:
    """Return a listed map."""
    return ActivationMap(name, source or f"/maps/{name}.npy", fingerprint, 100)


def receipt_for(map_: ActivationMap) -> Receipt:
    """Return a receipt for this map."""
    locator = f"{DESTINATION}/{map_.name}.png"
    return Receipt(map_.name, locator, map_.source, map_.fingerprint, 7, 4, 3, "etag", _NOON, COUNTED, "00c0ffee")


def failure_for(map_: ActivationMap, stage: Stage = "read") -> Failure:
    """Return a failure of this map."""
    return Failure(map_.name, map_.source, map_.fingerprint, stage, "it is broken")


def write_run(path: Path, outcomes: Iterable[Outcome], destination: str = DESTINATION) -> None:
    """Write a run with these outcomes."""
    with Manifest(path) as manifest:
        manifest.begin(destination)
        manifest.write(list(outcomes), SETTINGS)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return every row, as values by column."""
    with Manifest(path, read_only=True) as manifest:
        return [dict(zip(COLUMNS, row, strict=True)) for row in manifest.rows(failed=True)]


def rows(manifest: Path, what: str, where: str = "1") -> list[Any]:
    """Return columns of the rows as another program reads them; for one column, its values."""
    with closing(sqlite3.connect(f"{manifest.as_uri()}?mode=ro", uri=True)) as database:
        return [row if len(row) > 1 else row[0] for row in database.execute(f"SELECT {what} FROM maps WHERE {where}")]  # noqa: S608


def counted(path: Path) -> dict[str, int]:
    """Return the number of rows by status, as another program reads them."""
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        return dict(database.execute("SELECT status, count(*) FROM maps GROUP BY status"))


def make_plan(path: Path, maps: list[ActivationMap], select: Select = "changed", settings: str = SETTINGS) -> Plan:
    """Begin a run, and plan which of the maps it does."""
    with Manifest(path) as manifest:
        manifest.begin(DESTINATION)
        return manifest.plan(maps, settings, select)
