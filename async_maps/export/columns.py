"""The columns of an exported table, in the format of the program that reads it."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar, get_args

from async_maps.errors import SettingsError
from async_maps.filesystems.locators import bitmap_mask_fields, file_path
from async_maps.manifest.schema import BOOLEANS, COLUMNS, FLOATS, INTEGERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Row = tuple[object, ...]

T = TypeVar("T")

ExportFormat: TypeAlias = Literal["plain", "kolena", "fiftyone"]
"""The program that reads the table: any, ``kolena.io``, or FiftyOne; see :func:`export_columns`."""

ExportRows: TypeAlias = Literal["done", "failed", "all"]
"""The maps to export: those with an overlay, those that failed, or both."""

Kind: TypeAlias = Literal["text", "integer", "float", "boolean", "mask", "range"]
"""The type of a column's values; a mask is a dict, a range a list of two numbers."""

_KINDS: dict[str, Kind] = {
    **dict.fromkeys(INTEGERS, "integer"),
    **dict.fromkeys(FLOATS, "float"),
    **dict.fromkeys(BOOLEANS, "boolean"),
}
_ALIASES = {"reason": "error"}
"""Further headings of columns: ``Failure`` calls it the reason."""
OF_FAILURES = ("name", "stage", "reason", "source")
"""The default columns of an export of failed maps."""
_LOCATOR, _STATUS = COLUMNS.index("locator"), COLUMNS.index("status")


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""The first characters of what spreadsheets take for a formula (OWASP, "CSV Injection")."""


class Column(NamedTuple):
    """A column: its name, the type of its values, which may be null, and a function from a row to its value."""

    name: str
    kind: Kind
    value: Callable[[Row], Any]

    def as_json(self) -> Column:
        """Return a column with the same values as JSON text; null stays null."""

        def text(row: Row) -> str | None:
            value = self.value(row)
            return None if value is None else json.dumps(value, ensure_ascii=False)

        return Column(self.name, "text", text)

    def without_formulas(self) -> Column:
        """Return a column in which a spreadsheet takes no text for a formula."""

        def text(row: Row) -> Any:
            value = self.value(row)
            return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

        return self._replace(value=text)


def of_overlay(make: Callable[[str], T]) -> Callable[[Row], T | None]:
    """Return a function from a row to ``make(locator)``, or to None if the map failed."""
    return lambda row: make(str(row[_LOCATOR])) if row[_STATUS] == "done" else None


def export_columns(names: Sequence[str] | None, export_format: ExportFormat, rows: ExportRows = "done") -> list[Column]:
    """Return the columns of a table; by default all, or for failed maps those of the failure.

    The format ``kolena`` replaces ``locator`` by ``activation_map``, a ``BitmapMask`` in JSON as Kolena's client writes
    it (``kolena.io``, kolena 1.69.0).

    The format ``fiftyone`` replaces it by the fields of ``fiftyone.Heatmap`` (``fiftyone/core/labels.py``, FiftyOne
    1.22.1). ``map_path`` is "the absolute path to the heatmap image on disk", or an s3:// locator, which FiftyOne
    Enterprise can read (its documentation, "Cloud-Backed Media"). ``range``, "[min, max] range of the map's values", is
    that of the pixels, 0 to 255. FiftyOne colors a single channel itself, so the overlays should be gray PNGs.

    Raises:
        SettingsError: a column or the format is unknown, or a column is named twice or missing for the format.
    """
    if export_format not in get_args(ExportFormat):
        raise SettingsError(f"export_format: expected {', '.join(get_args(ExportFormat))}, found {export_format!r}")
    if rows not in get_args(ExportRows):
        raise SettingsError(f"rows: expected {', '.join(get_args(ExportRows))}, found {rows!r}")
    if rows == "failed" and export_format != "plain":
        raise SettingsError(f"failed maps have no overlays for {export_format}: export them as plain")
    if names is None:
        names = OF_FAILURES if rows == "failed" else COLUMNS
    known = (*COLUMNS, *_ALIASES)
    if unknown := [name for name in names if name not in known]:
        raise SettingsError(f"columns: unknown {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    if not names:
        raise SettingsError("columns: expected at least one, found none")
    if len(set(names)) < len(names):
        raise SettingsError(f"columns: name each column only once, found {', '.join(names)}")
    if export_format != "plain" and "locator" not in names:
        made = _OVERLAYS[export_format][0].name
        raise SettingsError(
            f"columns: {export_format} needs locator, from which {made} is made, found {', '.join(names)}"
        )
    columns: list[Column] = []
    for name in names:
        if name == "locator" and export_format != "plain":
            columns += _OVERLAYS[export_format]
        else:
            columns.append(Column(name, _KINDS.get(name, "text"), itemgetter(COLUMNS.index(_ALIASES.get(name, name)))))
    return columns


_OVERLAYS: dict[ExportFormat, tuple[Column, ...]] = {
    "kolena": (Column("activation_map", "mask", of_overlay(bitmap_mask_fields)),),
    "fiftyone": (
        Column("map_path", "text", of_overlay(lambda locator: file_path(locator) or locator)),
        Column("range", "range", of_overlay(lambda _: [0, 255])),
    ),
}

EXPORTED = frozenset((*COLUMNS, *_ALIASES, "url", *(column.name for made in _OVERLAYS.values() for column in made)))
"""The names of all columns that an exported table can have."""
