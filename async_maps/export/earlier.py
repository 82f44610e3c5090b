"""Recognizes an earlier export, which a new one may replace, by what a table of the user does not have."""

from __future__ import annotations

import csv
import json
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from async_maps.errors import MissingExtraError, SourceError, require_extra
from async_maps.export.columns import EXPORTED, OF_FAILURES
from async_maps.filesystems.filesystem import LocalFilesystem
from async_maps.plans.rows import open_rows
from async_maps.tables import read_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from os import PathLike
    from typing import IO

_OURS = {"high_share", "invalid_pixels"}
"""The columns that only an export has."""
_MAX_HEADER_BYTES = 2**20
_ROWS = 20
"""The number of rows whose locators are looked up."""


def is_export(table: Path, file: IO[bytes], manifest: str | PathLike[str]) -> bool:
    """Whether a table is an earlier export: all its columns are ours, and more than a few common names show that.

    That is a column that only exports have, the columns of failed maps, or a locator of the manifest in the first rows.
    A table without rows needs only our columns.

    Args:
        table: the path of the table.
        file: the table, open at its start.
        manifest: the manifest or the plan to export.
    """
    names = _names(table.suffix.lower(), file)
    if not EXPORTED.issuperset(names):
        return False
    if not _OURS.isdisjoint(names) or tuple(names) == OF_FAILURES:
        return True
    try:
        with closing(read_table(str(table), LocalFilesystem().open)) as found:
            rows = list(islice(found, _ROWS))
    except (SourceError, MissingExtraError):
        return False
    locators = {locator for row in rows for locator in _locators(row.values)}
    if not rows or not locators:
        return not rows
    with open_rows(manifest) as opened:
        return opened.has_any(locators)


def _names(suffix: str, file: IO[bytes]) -> list[str]:
    """Return the names of the columns of a table; a name that no column has if it is none."""
    try:
        if suffix == ".parquet":
            with require_extra("writing Parquet", "parquet"):
                import pyarrow.parquet as pq
            names: list[str] = pq.read_schema(file).names
            return names
        line = file.readline(_MAX_HEADER_BYTES).decode("utf-8-sig")
        return list(json.loads(line).keys()) if suffix == ".jsonl" else next(csv.reader([line]))
    except (ValueError, RecursionError, StopIteration, csv.Error, AttributeError):  # ArrowInvalid is a ValueError
        return [""]


def _locators(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the locator in a row, as each format of an export writes it."""
    overlay, path = values.get("activation_map"), values.get("map_path")
    if isinstance(overlay, str):
        try:
            overlay = json.loads(overlay)
        except (ValueError, RecursionError):
            overlay = None
    found = overlay.get("locator") if isinstance(overlay, dict) else values.get("locator")
    if isinstance(found, str):
        yield found
    if isinstance(path, str):
        yield Path(path).as_uri() if path.startswith("/") else path
