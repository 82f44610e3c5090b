"""A manifest as a table for other programs: CSV, Parquet or JSON lines.

Rows are streamed; the file appears whole or not at all.
"""

from __future__ import annotations

import csv
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.atomic import replacing
from async_maps.errors import ManifestError, MissingExtraError, SettingsError
from async_maps.manifest import BOOLEANS, COLUMNS, FLOATS, INTEGERS, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    Rows = Iterator[tuple[object, ...]]

_BATCH = 10_000


def export_manifest(manifest: str | PathLike[str], file: str | PathLike[str], *, failed: bool = False) -> int:
    """Write a manifest's rows to a file, by its suffix ``.csv``, ``.parquet`` or ``.jsonl``.

    Args:
        manifest: the manifest.
        file: replaced if it exists.
        failed: also the maps that failed, which have no locator, or one at which something else lies.

    Returns:
        how many rows were written.

    Raises:
        ManifestError: the manifest cannot be read, or the file cannot be written.
        MissingExtraError: Parquet needs the extra ``parquet``.
        SettingsError: another suffix.
    """
    target = Path(file)
    writers: dict[str, Callable[[Path, Rows], int]] = {".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl}
    write = writers.get(target.suffix.lower())
    if write is None:
        raise SettingsError(f"cannot export to {target.name!r}: expected a name ending in {', '.join(writers)}")
    with Manifest(manifest, read_only=True) as opened:
        try:
            with replacing(target) as temporary:
                count = write(temporary, opened.rows(failed=failed))
        except OSError as error:
            raise ManifestError(f"cannot write {target}: {error.strerror or error}") from error
    return count


def _csv(path: Path, rows: Rows) -> int:
    count = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for count, row in enumerate(rows, 1):  # noqa: B007  # the last one is returned
            writer.writerow(row)
    return count


def _jsonl(path: Path, rows: Rows) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, 1):  # noqa: B007  # the last one is returned
            file.write(json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) + "\n")
    return count


def _parquet(path: Path, rows: Rows) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("writing Parquet", "parquet") from None
    types = {
        **dict.fromkeys(INTEGERS, pa.int64()),
        **dict.fromkeys(FLOATS, pa.float64()),
        **dict.fromkeys(BOOLEANS, pa.bool_()),
    }
    schema = pa.schema([(column, types.get(column, pa.string())) for column in COLUMNS])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            try:
                columns = [
                    pa.array(values, field.type) for values, field in zip(zip(*batch, strict=True), schema, strict=True)
                ]
            except pa.ArrowException as error:
                # SQLite keeps what it is given, and what a damaged page says, of whatever type.
                raise ManifestError(f"the manifest cannot be exported: it is damaged ({error})") from error
            writer.write_table(pa.table(columns, schema=schema))
            count += len(batch)
    return count
