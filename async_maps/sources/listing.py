"""Tables: listings, whose rows have a ``name`` and a ``path``, or columns of arrays. Runs in a thread."""

from __future__ import annotations

import os
import posixpath
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from async_maps.errors import SourceError, translate_os_error
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.filesystems.filesystem import InaccessibleError
from async_maps.filesystems.locators import place_at
from async_maps.filesystems.spill import Spill
from async_maps.keys import printable
from async_maps.outcomes import Failure
from async_maps.sources.coverage import every
from async_maps.sources.formats.registry import is_columnar, without_suffix
from async_maps.sources.isolated_listing import IsolatedListing
from async_maps.sources.isolation import NoProcessError
from async_maps.sources.members import Columns, columns_of
from async_maps.sources.named import NamedFile, maps_in_named
from async_maps.tables import is_table, read_table

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from async_maps.filesystems.filesystem import Filesystems
    from async_maps.settings import S3Settings
    from async_maps.sources.activation_map import ActivationMap
    from async_maps.sources.options import Scan
    from async_maps.tables import Row

_COLUMNS = ("name", "path")
_NAMES = "CREATE TABLE names (name BLOB PRIMARY KEY, place TEXT) WITHOUT ROWID"


class Listing:
    """The maps in the files of a listing, or in the rows of a table, on disk or in a bucket, in the order of the rows.

    Raises:
        SourceError: in the iteration, if the table cannot be read or lacks a column, if a listing has a name twice, or
            if the table could be read in both ways.
    """

    def __init__(self, path: str, settings: S3Settings | None, scan: Scan) -> None:
        self._path = path if is_remote(path) else os.path.abspath(path)
        self._settings = settings
        self._scan = scan

    def __iter__(self) -> Iterator[ActivationMap | Failure]:
        with self._scan.opened(self._settings) as filesystems, closing(self.files(filesystems)) as files:
            yield from maps_in_named(files, filesystems, self._scan)

    def files(self, filesystems: Filesystems) -> Generator[NamedFile | Failure, None, None]:
        """Yield the files, as a :class:`~async_maps.sources.FileSource`."""
        if is_columnar(self._path) and self._has_arrays(filesystems):
            folder, name = posixpath.split(self._path)
            self._scan.begin(folder, printable(self._path).__eq__)
            yield NamedFile(without_suffix(name), self._path)
            return
        self._scan.begin(self._path, every)
        # In a separate pass, so that a duplicate name is found before the first of a million maps is uploaded.
        with closing(self._rows(filesystems)) as rows:
            self._check_names(rows)
        with closing(self._rows(filesystems)) as rows:
            yield from map(self._file, rows)

    def _has_arrays(self, filesystems: Filesystems) -> bool:
        """Whether the maps are a column of the table; False if they are in the files of its paths."""
        chosen = self._scan.options.column
        try:
            found = self._columns(filesystems)
            is_listing = is_table(self._path) and set(_COLUMNS).issubset(found.names)
            if is_listing and (chosen == "path" or not found.arrays):
                return False
            if is_listing and chosen is None:
                raise SourceError(
                    f"the table has maps in the column {found.arrays[0]} and paths of maps in the column path; choose "
                    f"one with --column {found.arrays[0]} or --column path"
                )
            if found.advice:
                raise SourceError(found.advice)
        except (OSError, SourceError) as error:
            raise SourceError(f"{printable(self._path)}: {translate_os_error(error)}") from error
        return True

    def _columns(self, filesystems: Filesystems) -> Columns:
        if self._scan.decoder is not None:
            with suppress(NoProcessError), closing(IsolatedListing(self._scan.decoder)) as isolated:
                return isolated.columns(self._path)
        return columns_of(self._path, filesystems)

    def _rows(self, filesystems: Filesystems) -> Generator[Row, None, None]:
        """Yield the rows of the table; those of Parquet are decoded in the child process."""
        if self._scan.decoder is not None and is_columnar(self._path):
            try:
                with suppress(NoProcessError), closing(IsolatedListing(self._scan.decoder)) as isolated:
                    yield from isolated.rows(self._path, _COLUMNS)
                    return
            except InaccessibleError as error:
                raise SourceError(f"{printable(self._path)}: {error}") from error
        with closing(read_table(self._path, filesystems.of(self._path).open, _COLUMNS)) as rows:
            yield from rows

    def _check_names(self, rows: Iterator[Row]) -> None:
        with Spill("the names of a listing", _NAMES, SourceError) as names, names.transaction() as database:
            for row in rows:
                name = row.values.get("name")
                if name is None or name == "":
                    continue
                key = str(name).encode("utf-8", "surrogatepass")
                if not database.execute("INSERT OR IGNORE INTO names VALUES (?, ?)", (key, row.place)).rowcount:
                    (first,) = database.execute("SELECT place FROM names WHERE name = ?", (key,)).fetchone()
                    raise SourceError(
                        f"{printable(self._path)}: the name {printable(str(name))!r} is in {first} and in {row.place}; "
                        "give each map its own name"
                    )

    def _file(self, row: Row) -> NamedFile | Failure:
        where = f"{printable(self._path)}, {row.place}"
        name, path = row.values.get("name"), row.values.get("path")
        if isinstance(name, int) and not isinstance(name, bool):
            name = str(name)
        if problem := row.problem or _problem("name", name) or _problem("path", path):
            shown = printable(name) if name and isinstance(name, str) else where
            return Failure(shown, where, None, "source", problem, printable(self._path))
        try:
            return NamedFile(str(name), self._absolute(str(path)), where)
        except SourceError as error:
            return Failure(printable(str(name)), where, None, "source", str(error), printable(self._path))

    def _absolute(self, path: str) -> str:
        path = place_at(path)
        if is_remote(path) or os.path.isabs(path):
            return path
        if is_remote(self._path):
            at = parse_address(self._path)
            return str(at._replace(key=posixpath.normpath(posixpath.join(posixpath.dirname(at.key), path))))
        return os.path.normpath(os.path.join(os.path.dirname(self._path), path))


def _problem(column: str, value: object) -> str:
    if value is None or value == "":
        return f"the row has no {column}"
    return "" if isinstance(value, str) else f"the row's {column} must be text, found {value!r:.80}"
