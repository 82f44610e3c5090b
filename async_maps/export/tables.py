"""Exports the rows of a manifest or a plan as CSV, Parquet or JSON lines. Blocks.

Rows are streamed; files are written atomically.
"""

from __future__ import annotations

import csv
import json
import logging
import os
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

from async_maps.errors import InputValidationError, ManifestError, SettingsError, require_extra
from async_maps.export.columns import Column, export_columns, of_overlay
from async_maps.export.earlier import is_export
from async_maps.filesystems.addresses import is_remote
from async_maps.filesystems.atomic import replacing
from async_maps.filesystems.locators import bitmap_mask_fields, file_path
from async_maps.filesystems.outputs import check_output, files_of_run
from async_maps.keys import printable
from async_maps.plans.rows import PlanRows, open_rows
from async_maps.suggestions import suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from os import PathLike
    from typing import TextIO

    from async_maps.export.columns import ExportFormat, ExportRows, Row
    from async_maps.manifest.manifest import Manifest

    Rows = Iterator[Row]
    Writer = Callable[[Path, Sequence[Column], Rows], None]

_logger = logging.getLogger("async_maps")

_BATCH = 10_000


def export_manifest(  # noqa: PLR0913  # one argument per option
    manifest: str | PathLike[str],
    file: str | PathLike[str],
    *,
    rows: ExportRows = "done",
    columns: Sequence[str] | None = None,
    export_format: ExportFormat = "plain",
    presign_hours: float | None = None,
    spreadsheet_safe: bool = False,
) -> int:
    """Write the rows of a manifest or a plan to a CSV, Parquet or JSON Lines file.

    Args:
        manifest: the path of a manifest; or the address of a plan whose parts are all committed, a folder or a prefix
            in a bucket. The rows of a plan come part by part.
        file: the path to write, ending in ``.csv``, ``.parquet`` or ``.jsonl``. An earlier export is replaced if it has
            the column ``high_share``, those of failed maps, or a locator of this manifest. No other file is replaced.
        rows: ``done``: maps with an overlay. ``failed``: only maps that failed. ``all``: both. Failed maps have no
            locator, except in ``plain`` the maps that failed at stage ``verify``, whose overlay is broken.
        columns: the names of the columns, in this order; None for all, and with ``rows="failed"`` for ``name``,
            ``stage``, ``reason`` and ``source``. ``reason`` is another heading of the column ``error``.
        export_format: the program that reads the table. ``plain``: any. ``kolena``: ``kolena.io.dataframe_from_csv``,
            ``_from_parquet`` and ``_from_json(lines=True)``, with a column ``activation_map`` in place of ``locator``.
            ``fiftyone``: FiftyOne, with columns ``map_path`` and ``range`` in place of ``locator``.
        presign_hours: 1 to 168 adds a last column ``url``. Anyone can read the overlay at that URL for this number of
            hours, or until the credentials that signed it expire: keep it secret. So only the owner can read the file.
            None adds no column.
        spreadsheet_safe: put an apostrophe before texts that spreadsheets take for formulas: those that start with
            ``=``, ``+``, ``-``, ``@``, a tab or a line break. Only for CSV; the names are then not those of the maps.

    Returns:
        The number of rows written.

    Raises:
        ManifestError: the manifest cannot be read, the file cannot be written, Kolena cannot read the locators, or
            FiftyOne cannot read colored overlays.
        PlanError: there is no plan, this version cannot read it, or parts of it are not committed.
        MissingExtraError: a Parquet file needs the extra ``parquet``.
        SettingsError: an unknown suffix, column, format or choice of rows, a number of hours outside 1 to 168, or
            URLs of overlays that are in no bucket; failed maps for a program that reads overlays, or with URLs; or a
            file that is no export would be replaced.
        StoreError: there are no credentials to sign URLs with, or the store of the plan cannot be used.
    """
    target = Path(file)
    writers: dict[str, Writer] = {".csv": _csv, ".parquet": _parquet, ".jsonl": _jsonl}
    write = writers.get(target.suffix.lower())
    if write is None:
        raise SettingsError(f"cannot export to {target.name!r}: expected a name ending in {', '.join(writers)}")
    if spreadsheet_safe and write is not _csv:
        raise SettingsError(f"spreadsheet_safe: only CSV is read by spreadsheets as formulas, found {target.name!r}")
    is_ours = partial(is_export, target, manifest=manifest)
    check_output(target, "the table", is_ours, files_of_run(manifest=manifest))
    with _exporting(manifest, rows, columns, export_format, presign_hours) as (plain, found):
        table = [column.without_formulas() for column in plain] if spreadsheet_safe else plain
        if export_format == "kolena" and write is _parquet:
            # Like dataframe_to_parquet; otherwise names that look like numbers become numbers when they are read.
            table = [column.as_json() if column.kind == "text" else column for column in table]
        written = count()
        try:
            with replacing(target, private=presign_hours is not None) as temporary:
                write(temporary, table, (row for row, _ in zip(found, written, strict=False)))
        except OSError as error:
            raise ManifestError(f"cannot write {target}: {error.strerror or error}") from error
        return next(written)


def write_csv(  # noqa: PLR0913  # one argument per option
    manifest: str | PathLike[str],
    out: TextIO,
    *,
    rows: ExportRows = "done",
    columns: Sequence[str] | None = None,
    export_format: ExportFormat = "plain",
    presign_hours: float | None = None,
    spreadsheet_safe: bool = False,
) -> int:
    """Write CSV like :func:`export_manifest`, but to a text stream and with LF line ends; return the number of rows.

    Raises OSError if the stream cannot be written.
    """
    with _exporting(manifest, rows, columns, export_format, presign_hours) as (plain, found):
        table = [column.without_formulas() for column in plain] if spreadsheet_safe else plain
        written = count()
        _write_csv(out, table, (row for row, _ in zip(found, written, strict=False)), "\n")
        return next(written)


@contextmanager
def _exporting(
    manifest: str | PathLike[str],
    rows: ExportRows,
    columns: Sequence[str] | None,
    export_format: ExportFormat,
    presign_hours: float | None,
) -> Iterator[tuple[list[Column], Rows]]:
    """Check all arguments, and yield the columns and the rows of a table."""
    table = export_columns(columns, export_format, rows)
    if rows == "failed" and presign_hours is not None:
        raise SettingsError("presign: failed maps have no overlays to sign URLs for")
    with ExitStack() as stack:
        opened = open_rows(manifest)
        stack.enter_context(opened)
        _notice_moved_folder(opened)
        if export_format == "kolena":
            _refuse_unreadable(opened)
        if export_format == "fiftyone":
            _refuse_colored(opened)
        if presign_hours is not None:
            _refuse_files(opened)
            table.append(_url_column(stack, presign_hours, opened))
        found = opened.failures() if rows == "failed" else opened.rows(failed=rows == "all")
        yield table, stack.enter_context(closing(found))


def _notice_moved_folder(manifest: Manifest | PlanRows) -> None:
    folder = file_path(manifest.destination() or "")
    if folder is not None and not os.path.lexists(folder) and manifest.lists_overlays():
        moved = (
            "move it back: the locators of a plan do not change"
            if isinstance(manifest, PlanRows)
            else f"run into the new folder with {manifest.path}, which updates the locators, and export again"
        )
        _logger.warning(
            "%s does not exist, so no locator leads to a file. If it was moved, %s", printable(folder), moved
        )


def _refuse_unreadable(manifest: Manifest | PlanRows) -> None:
    """Raise ManifestError if Kolena cannot read a locator."""
    for locator, _ in manifest.claims():
        try:
            bitmap_mask_fields(str(locator))
        except InputValidationError as error:
            raise ManifestError(f"{manifest.path} cannot be exported for Kolena: {error}") from error


def _refuse_colored(manifest: Manifest | PlanRows) -> None:
    """Raise ManifestError if FiftyOne cannot read an overlay as a map."""
    done = manifest.done()
    shaped = {run.settings: run.shaping["png"] for run in manifest.runs()}
    colored = sum(done.get(settings, 0) for settings, png in shaped.items() if png != "gray")
    if colored:
        raise ManifestError(
            f"{manifest.path} cannot be exported for FiftyOne, which colors one channel itself: "
            f"{colored:,} of its overlays are colored; to make gray ones, run: "
            + suggest("run", "SOURCE", "ANOTHER-DESTINATION", "--manifest", "ANOTHER-MANIFEST", "--png", "gray")
        )


def _refuse_files(manifest: Manifest | PlanRows) -> None:
    place = manifest.destination()
    if place is not None and not is_remote(place):
        raise SettingsError(
            f"presign: only objects in S3, gs:// or az:// have presigned URLs; these overlays lie in {place}"
        )


def _url_column(stack: ExitStack, hours: float, manifest: Manifest | PlanRows) -> Column:
    from async_maps.filesystems.presign import presigning

    payers = {run.shaping["s3"].get("request_payer") for run in manifest.runs()} - {None}
    presigned = stack.enter_context(presigning(hours, manifest.destination(), next(iter(payers), None)))
    return Column("url", "text", of_overlay(presigned))


def _csv(path: Path, columns: Sequence[Column], rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        _write_csv(file, columns, rows)


def _write_csv(out: TextIO, columns: Sequence[Column], rows: Rows, line_end: str = "\r\n") -> None:
    columns = [column.as_json() if column.kind in {"mask", "range"} else column for column in columns]
    values = [column.value for column in columns]
    writer = csv.writer(out, lineterminator=line_end)
    writer.writerow(column.name for column in columns)
    writer.writerows([value(row) for value in values] for row in rows)


def _jsonl(path: Path, columns: Sequence[Column], rows: Rows) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({column.name: column.value(row) for column in columns}, ensure_ascii=False) + "\n")


def _parquet(path: Path, columns: Sequence[Column], rows: Rows) -> None:
    with require_extra("writing Parquet", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    columns = [column.as_json() if column.kind == "mask" else column for column in columns]
    types = {
        "text": pa.string(),
        "integer": pa.int64(),
        "float": pa.float64(),
        "boolean": pa.bool_(),
        "range": pa.list_(pa.float64()),
    }
    schema = pa.schema([(column.name, types[column.kind]) for column in columns])
    with pq.ParquetWriter(path, schema) as writer:
        while batch := list(islice(rows, _BATCH)):
            try:
                arrays = [pa.array([column.value(row) for row in batch], types[column.kind]) for column in columns]
            except pa.ArrowException as error:
                # SQLite keeps values of any type, and a damaged page may hold any.
                raise ManifestError(f"the manifest cannot be exported: it is damaged ({error})") from error
            writer.write_table(pa.table(arrays, schema=schema))
