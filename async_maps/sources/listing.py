"""Listings: a ``.csv``, ``.parquet`` or ``.jsonl`` file whose rows have a ``name`` and a ``path``. Runs in a thread.

Rows are streamed: a listing is never in memory.
"""

from __future__ import annotations

import csv
import io
import json
import os
import posixpath
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, NamedTuple

from async_maps.errors import MissingExtraError, SourceError
from async_maps.filesystems.filesystem import Filesystems, is_remote
from async_maps.keys import printable
from async_maps.outcomes import Failure
from async_maps.sources.files import explain
from async_maps.sources.named import NamedFile, maps_in_named

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from async_maps.settings import S3Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.sources.files import Known

_COLUMNS = ("name", "path")
_MAX_LINE = 2**20
_BATCH_ROWS = 4096


class Row(NamedTuple):
    """A row of a listing.

    Attributes:
        where: ``line 7``.
        name: whatever the listing has there.
        path: as well.
        problem: why there is neither.
    """

    where: str
    name: object = None
    path: object = None
    problem: str = ""


def is_table(path: str) -> bool:
    """Whether a file is a listing, by its suffix."""
    return os.path.splitext(path)[1].lower() in _ROWS


class Table:
    """The maps in the files that a listing names.

    Args:
        path: the listing, on a disk or ``s3://bucket/key``.
        settings: how patient the client of S3 is.
        known: what need not be looked into.

    Raises:
        SourceError: on iterating, the listing cannot be read, has no column ``name`` or ``path``, or a name twice.
        MissingExtraError: on iterating, Parquet needs the extra ``parquet``.
    """

    def __init__(self, path: str, settings: S3Settings | None, known: Known | None) -> None:
        self._path = path if is_remote(path) else os.path.abspath(path)
        self._settings = settings
        self._known = known

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        """The maps, in the order of the rows."""
        with Filesystems(self._settings) as filesystems:
            # A list that names two maps alike is wrong as a whole: better found before the first of a million is done.
            with self._rows(filesystems) as rows:
                _check_names(rows)
            yield from maps_in_named(self._files(filesystems), filesystems, self._known)

    def _files(self, filesystems: Filesystems) -> Iterator[NamedFile | Failure]:
        with self._rows(filesystems) as rows:
            for row in rows:
                yield self._file(row)

    @contextmanager
    def _rows(self, filesystems: Filesystems) -> Iterator[Iterator[Row]]:
        rows = _ROWS[os.path.splitext(self._path)[1].lower()]
        try:
            with filesystems.of(self._path).open(self._path) as file:
                yield rows(file)
        except (OSError, SourceError) as error:
            raise SourceError(f"{printable(self._path)}: {explain(error)}") from error

    def _file(self, row: Row) -> NamedFile | Failure:
        where = f"{printable(self._path)}, {row.where}"
        name = str(row.name) if isinstance(row.name, int) and not isinstance(row.name, bool) else row.name
        problem = row.problem or _problem("name", name) or _problem("path", row.path)
        if problem or not isinstance(name, str) or not isinstance(row.path, str):
            return Failure(printable(name) if name and isinstance(name, str) else where, where, None, "source", problem)
        return NamedFile(name, self._absolute(row.path), where)

    def _absolute(self, path: str) -> str:
        if is_remote(path) or os.path.isabs(path):
            return path
        if is_remote(self._path):
            bucket, _, key = self._path.removeprefix("s3://").partition("/")
            return f"s3://{bucket}/{posixpath.normpath(posixpath.join(posixpath.dirname(key), path))}"
        return os.path.normpath(os.path.join(os.path.dirname(self._path), path))


def _check_names(rows: Iterator[Row]) -> None:
    """Refuse a listing in which a name occurs twice.

    Raises:
        SourceError: it does; both rows are named.
    """
    # A private database, which SQLite spills to a file of its own and deletes: any number of names will do.
    with closing(sqlite3.connect("", isolation_level=None)) as seen:
        seen.execute("CREATE TABLE names (name BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID")
        seen.execute("BEGIN")
        for row in rows:
            if row.name is None or row.name == "":
                continue
            name = str(row.name).encode("utf-8", "surrogatepass")
            if not seen.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (name, row.where)).rowcount:
                (first,) = seen.execute("SELECT place FROM names WHERE name = ?", (name,)).fetchone()
                name_ = printable(str(row.name))
                raise SourceError(f"the name {name_} is in {first} and in {row.where}: each map needs its own")


def _problem(column: str, value: object) -> str:
    if value is None or value == "":
        return f"the row has no {column}"
    return "" if isinstance(value, str) else f"the row's {column} should be text, found {value!r:.80}"


def _check_columns(found: Sequence[object]) -> None:
    missing = [column for column in _COLUMNS if column not in found]
    if missing:
        columns = ", ".join(printable(str(column))[:80] for column in found[:20]) or "none"
        raise SourceError(f"a listing needs the columns name and path; found {columns}")


def _lines(file: BinaryIO) -> Iterator[str]:
    # What is not UTF-8 is for its own row to fail over; the mark that Excel puts at the beginning is no column's name.
    with io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="") as text:
        while line := text.readline(_MAX_LINE):
            if len(line) == _MAX_LINE and not line.endswith(("\n", "\r")):
                raise SourceError(f"a line of more than {_MAX_LINE:,} characters; is it a listing?")
            yield line


def _csv_rows(file: BinaryIO) -> Iterator[Row]:
    reader = csv.reader(_lines(file))
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise SourceError(f"expected a CSV file: {error}") from error
    if header is None:
        return
    _check_columns(header)
    name, path = (header.index(column) for column in _COLUMNS)
    while True:
        try:
            values = next(reader, None)
        except csv.Error as error:
            yield Row(f"line {reader.line_num:,}", problem=f"expected a CSV row: {error}")
            continue
        if values is None:
            return
        if values:
            values += [""] * (len(header) - len(values))
            yield Row(f"line {reader.line_num:,}", values[name], values[path])


def _jsonl_rows(file: BinaryIO) -> Iterator[Row]:
    first = True
    for number, line in enumerate(_lines(file), 1):
        if not line.strip():
            continue
        where = f"line {number:,}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(where, problem=f"expected a JSON object: {error}")
        else:
            if not isinstance(values, dict):
                yield Row(where, problem=f"expected a JSON object, found {values!r:.80}")
                continue
            if first:
                _check_columns(list(values))
            yield Row(where, values.get("name"), values.get("path"))
        first = False


def _parquet_rows(file: BinaryIO) -> Iterator[Row]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtraError("reading Parquet", "parquet") from None
    try:
        with pq.ParquetFile(file) as table:
            _check_columns(table.schema_arrow.names)
            number = 0
            for batch in table.iter_batches(_BATCH_ROWS, columns=list(_COLUMNS), use_threads=False):
                columns = [batch.column(column).to_pylist() for column in _COLUMNS]
                for number, (name, path) in enumerate(zip(*columns, strict=True), number + 1):  # noqa: B020
                    yield Row(f"row {number:,}", name, path)
    except (pa.ArrowException, KeyError, UnicodeDecodeError) as error:
        raise SourceError(f"expected a Parquet file: {error}") from error


_ROWS: dict[str, Callable[[BinaryIO], Iterator[Row]]] = {
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
    ".jsonl": _jsonl_rows,
}
