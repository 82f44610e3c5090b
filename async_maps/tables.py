"""Reading of CSV, JSON lines and Parquet tables, row by row. Everything here blocks."""

from __future__ import annotations

import csv
import io
import json
import os
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

from async_maps.errors import SourceError, require_extra, translate_os_error
from async_maps.keys import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
    from typing import BinaryIO

_MAX_LINE = 4 * 2**20
"""In characters. A binary file may have no line break."""
_BATCH_ROWS = 1024
_UTF_16_MARKS = tuple(mark.decode(errors="surrogateescape") for mark in (BOM_UTF16_LE, BOM_UTF16_BE))


class Row(NamedTuple):
    """A row of a table: values by column, or the problem that makes it unreadable.

    ``place`` is for messages: ``line 7`` of a text file, ``row 7`` of a Parquet file.
    """

    place: str
    values: Mapping[str, Any]
    problem: str = ""


def is_table(path: str) -> bool:
    """Whether the path has the suffix of a table."""
    return _suffix(path) in _FORMATS


def read_table(
    path: str, open_file: Callable[[str], BinaryIO], columns: Sequence[str] = ()
) -> Generator[Row, None, None]:
    """Yield the rows of a table; its suffix decides the format. Empty lines are skipped.

    The columns are required; others of CSV and Parquet are not read. Without columns, all are read.

    Raises:
        SourceError: the file cannot be read, has another format, lacks a column, or has a line that is too long.
        MissingExtraError: the extra ``parquet`` is not installed.
    """
    try:
        with open_file(path) as file:
            yield from _FORMATS[_suffix(path)](file, columns)
    except (OSError, SourceError) as error:
        raise SourceError(f"{printable(path)}: {translate_os_error(error)}") from error


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()


def _check_columns(
    columns: Sequence[str], found: Sequence[object], first: Callable[[], Iterable[object]] = list
) -> None:
    """Raise SourceError if a column is missing; ``first`` returns the values of the first row."""
    if not set(columns).issubset(found):
        for column, value in zip(found, first(), strict=False):
            if isinstance(value, list) or (isinstance(value, str) and value.lstrip().startswith("[")):
                raise SourceError(
                    f"the column {printable(str(column))[:80]} holds arrays, not paths: save the table as Parquet, or "
                    "call am.run(((name, array) for ...), DESTINATION) in Python"
                )
        listed = ", ".join(printable(str(column))[:80] for column in found[:20]) or "none"
        word = "column" if len(columns) == 1 else "columns"
        raise SourceError(f"the table needs the {word} {' and '.join(columns)}; found {listed}")


def _refuse_repeated(columns: Sequence[str], found: Sequence[str]) -> None:
    """Raise SourceError if one of the columns, or any without ``columns``, is there twice; no name is no column."""
    counts = Counter(found)
    repeated = next((column for column in columns or found if column and counts[column] > 1), None)
    if repeated is not None:
        raise SourceError(f"the table has the column {printable(repeated)[:80]} twice: rename or delete one of them")


def _lines(file: BinaryIO) -> Iterator[str]:
    # surrogateescape: invalid UTF-8 affects only its own row. utf-8-sig: Excel writes a byte order mark.
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
        while line := text.readline(_MAX_LINE):
            if line.startswith(_UTF_16_MARKS):
                raise SourceError("the table is UTF-16: save it as UTF-8")
            if len(line) == _MAX_LINE and not line.endswith(("\n", "\r")):
                raise SourceError(f"a line has more than {_MAX_LINE:,} characters; is the file a table?")
            yield line


def _csv_rows(file: BinaryIO, columns: Sequence[str]) -> Iterator[Row]:
    reader = csv.reader(_lines(file))
    positions: dict[str, int] = {}
    width = 0
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if not positions:
                raise SourceError(f"expected a CSV file: {error}") from error
            yield Row(f"line {reader.line_num:,}", {}, f"expected a CSV row: {error}")
            continue
        if cells is None:
            return
        if cells and not positions:
            _check_columns(columns, cells, lambda: _next_row(reader))
            _refuse_repeated(columns, cells)
            positions, width = {column: cells.index(column) for column in columns or cells}, len(cells)
        elif cells:
            cells += [""] * (width - len(cells))
            yield Row(f"line {reader.line_num:,}", {column: cells[at] for column, at in positions.items()})


def _next_row(reader: Iterator[list[str]]) -> list[str]:
    try:
        return next(reader, [])
    except csv.Error:
        return []


def _jsonl_rows(file: BinaryIO, columns: Sequence[str]) -> Iterator[Row]:
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        values, problem = {}, ""
        try:
            found = json.loads(line, object_pairs_hook=_object)
        except (ValueError, RecursionError) as error:
            problem = f"expected a JSON object: {error}"
        else:
            if not isinstance(found, dict):
                problem = f"expected a JSON object, found {found!r:.80}"
            else:
                values = found
                if columns:
                    _check_columns(columns, list(values), values.values)
                    # Later rows may lack a column.
                    columns = ()
        yield Row(f"line {number:,}", values, problem)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {printable(repeated)[:80]!r} is there twice")
    return values


def _parquet_rows(file: BinaryIO, columns: Sequence[str]) -> Iterator[Row]:
    with require_extra("reading Parquet", "parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        with pq.ParquetFile(file) as table:
            _check_columns(columns, table.schema_arrow.names)
            _refuse_repeated(columns, table.schema_arrow.names)
            batches = table.iter_batches(_BATCH_ROWS, columns=list(columns) or None, use_threads=False)
            for number, values in enumerate(chain.from_iterable(batch.to_pylist() for batch in batches), 1):
                yield Row(f"row {number:,}", values)
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise SourceError(f"expected a Parquet file: {error}") from error


_FORMATS: dict[str, Callable[[BinaryIO, Sequence[str]], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".jsonl": _jsonl_rows,
    ".parquet": _parquet_rows,
}
