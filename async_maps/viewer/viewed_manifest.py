"""The rows of an open manifest for the page, by their numbers. Blocks."""

from __future__ import annotations

import json
import math
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from async_maps.manifest.manifest import Manifest
from async_maps.manifest.metadata import KeptRun
from async_maps.manifest.schema import BOOLEANS, COLUMNS, FLOATS, INTEGERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_MOST_INTEGER = 2**53
"""Larger integers are not exact in the page."""
WRITTEN = (*COLUMNS, "file")
"""The columns of a row."""


class Chunk(NamedTuple):
    """The rows of a manifest between two row numbers, both included."""

    first: int
    last: int
    size: int


class Names(NamedTuple):
    """Names of rows.

    Attributes:
        numbers: the numbers of the rows, (n,) int64.
        text: the names, joined by NUL.
        last: the last name in the order of the names.
    """

    numbers: NDArray[np.int64]
    text: str
    last: bytes = b""


class ViewedManifest(Manifest):
    """An open manifest, whose rows are found by their numbers. Text that is not UTF-8 is shown with marks.

    The manifest may be an attacker's: values that no run writes are replaced, and rows whose name is no text are shown
    on the first pages only.
    """

    def _connect(self, place: str) -> sqlite3.Connection:
        database = super()._connect(place)
        database.text_factory = lambda data: data.decode("utf-8", "replace")
        return database

    def page(self, rows: Sequence[int]) -> list[dict[str, Any] | None]:
        """Return the rows with these numbers; None for one that is gone."""
        marks = ", ".join("?" * len(rows))
        query = f"SELECT rowid, {', '.join(WRITTEN)} FROM maps WHERE rowid IN ({marks})"  # noqa: S608  # question marks
        with self._reading() as database:
            found = database.execute(query, list(rows))
            known = {number: _fields(number, values) for number, *values in found}
        return [known.get(number) for number in rows]

    def first(self, start: int, count: int) -> list[dict[str, Any] | None]:
        """Return rows in the order of their names; maps that were refused at their source are not among them."""
        with self._reading() as database:
            found = database.execute(
                f"SELECT rowid, {', '.join(WRITTEN)} FROM maps WHERE stage IS NOT 'source' "  # noqa: S608  # names of our own
                "ORDER BY name LIMIT ? OFFSET ?",
                (count, start),
            )
            return [_fields(number, values) for number, *values in found]

    def number_of(self, name: str) -> int | None:
        """Return the number of the row of a map, or of one that was refused at its source; None if there is none."""
        with self._reading() as database:
            for condition in ("stage IS NOT 'source'", "stage = 'source'"):
                query = f"SELECT rowid FROM maps WHERE {condition} AND name = ? LIMIT 1"  # noqa: S608  # our own
                for (number,) in database.execute(query, (name,)):
                    return int(number)
        return None

    def names(self, after: bytes, count: int) -> Names:
        """Return the numbers and names of the next rows in the order of their names."""
        rows = (
            "SELECT rowid, name FROM maps WHERE stage IS NOT 'source' AND name > CAST(? AS TEXT) "
            "AND typeof(name) = 'text' ORDER BY name LIMIT ?"
        )
        # One text for all names: a tuple for each takes twice as long.
        query = (
            "SELECT group_concat(rowid, ' '), group_concat(name, char(0)), CAST(max(name) AS BLOB) "  # noqa: S608  # our own
            f"FROM ({rows})"
        )
        with self._reading() as database:
            numbers, names, last = database.execute(query, (after, count)).fetchone()
            found = Names(np.fromstring(numbers or "", np.int64, sep=" "), names or "", last or b"")
            if found.text.count("\0") >= max(1, len(found.numbers)):
                found = _joined(database.execute(rows, (after, count)).fetchall(), found.last)
        return found

    def names_below(self, folder: str, count: int) -> list[tuple[int, str]]:
        """Return the numbers and names of the first rows whose names start with ``folder/``."""
        query = (
            "SELECT rowid, name FROM maps WHERE stage IS NOT 'source' AND name > ? AND name < ? ORDER BY name LIMIT ?"
        )
        with self._reading() as database:
            return database.execute(query, (f"{folder}/", f"{folder}0", count)).fetchall()

    def refused_names(self) -> Names:
        """Return the numbers and names of maps that were refused at their source."""
        query = "SELECT rowid, name FROM maps WHERE stage = 'source' AND typeof(name) = 'text' ORDER BY name, rowid"
        with self._reading() as database:
            return _joined(database.execute(query).fetchall())

    def column(self, expression: str, chunk: Chunk) -> NDArray[np.float64] | None:
        """Return the values of an SQL expression of ours, in the order of the row numbers; NaN for null.

        None if there are other rows than those of the chunk.
        """
        query = f"SELECT {_number(expression)} FROM maps WHERE rowid BETWEEN ? AND ? ORDER BY rowid"  # noqa: S608  # our own
        with self._reading() as database:
            found = database.execute(query, (chunk.first, chunk.last))
            values = np.fromiter((value for (value,) in found), np.float64)
        values[np.isinf(values)] = np.nan
        return values if len(values) == chunk.size else None

    def numbered(self, expression: str, chunk: Chunk) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the row numbers, and the values of :meth:`column`."""
        kind = np.dtype([("number", np.int64), ("value", np.float64)])
        query = f"SELECT rowid, {_number(expression)} FROM maps WHERE rowid BETWEEN ? AND ? ORDER BY rowid"  # noqa: S608  # our own
        with self._reading() as database:
            found = np.fromiter(database.execute(query, (chunk.first, chunk.last)), kind)
        values = found["value"].copy()
        values[np.isinf(values)] = np.nan
        return found["number"].copy(), values

    def failed_rows(self, limit: int) -> list[tuple[int, str, str, str, str]]:
        """Return number, name, source, stage and reason of failed maps, at most ``limit``."""
        query = "SELECT rowid, name, source, stage, error FROM maps WHERE status = 'failed' LIMIT ?"
        with self._reading() as database:
            return [(number, *map(_text, values)) for number, *values in database.execute(query, (limit,))]

    def runs(self) -> list[KeptRun]:
        """Return the settings of the runs that can be read."""
        with self._reading() as database:
            found = database.execute("SELECT value FROM meta WHERE key GLOB 'run *' ORDER BY key").fetchall()
        runs = []
        for (value,) in found:
            with suppress(TypeError, ValueError, RecursionError):
                run: Any = KeptRun(*json.loads(value))
                # The page gets them, and JSON has no infinity.
                json.dumps(run, allow_nan=False)
                if isinstance(run.settings, str) and isinstance(run.shaping, dict):
                    runs.append(run)
        return runs


def _joined(rows: list[tuple[int, str]], last: bytes = b"") -> Names:
    """Join names; a NUL in a name, which no run writes, becomes a space."""
    numbers = np.array([number for number, _ in rows], np.int64)
    return Names(numbers, "\0".join(name.replace("\0", " ") for _, name in rows), last)


def _fields(number: int, values: Sequence[Any]) -> dict[str, Any]:
    row = dict(zip(WRITTEN, values, strict=True))
    for column, value in row.items():
        # No run writes others; JSON has none.
        if column in FLOATS:
            row[column] = value if isinstance(value, float | int) and math.isfinite(value) else None
        elif column in INTEGERS:
            row[column] = value if isinstance(value, int) and 0 <= value <= _MOST_INTEGER else None
        elif column in BOOLEANS:
            row[column] = None if value is None else bool(value)
        else:
            row[column] = None if value is None else _text(value)
    return {"row": number} | row


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str("" if value is None else value)


def _number(expression: str) -> str:
    """Return SQL for a number; infinity for anything else."""
    return f"CASE WHEN typeof({expression}) IN ('integer', 'real') THEN {expression} ELSE 9e999 END"
