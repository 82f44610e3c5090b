"""The locators in a table of results: ``.csv``, ``.jsonl`` or ``.parquet``, ours or Kolena's. Blocks; row by row."""

from __future__ import annotations

import json
import re
from contextlib import closing
from typing import TYPE_CHECKING, Any

from async_maps.errors import SourceError
from async_maps.filesystems.filesystem import Filesystems
from async_maps.filesystems.locators import DATA_TYPE
from async_maps.filesystems.services import canonical
from async_maps.keys import printable
from async_maps.tables import read_table
from async_maps.verify.comparison import Expected

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from async_maps.settings import S3Settings

_CRC32 = re.compile("[0-9a-f]{1,8}")


def locators_in(path: str, s3: S3Settings | None = None) -> Generator[Expected, None, None]:
    """Yield every locator of a table, in the order of its rows.

    Locators are in the column ``locator``, with the columns ``bytes``, ``etag``, ``crc32``, ``width`` and ``height`` if
    they exist. They are also in each cell that is an object ``{"locator": ..., "data_type": ...}``, a list of objects,
    or the JSON of either; Kolena writes ``BitmapMask`` in this form (``kolena.io``, 1.69.0). In a row with such cells,
    the column ``locator`` is the image below the overlay, which need not be a PNG.

    Raises:
        SourceError: the table cannot be read.
        SettingsError: a locator is in an account that is not known.
        MissingExtraError: the extra ``parquet`` is not installed.
    """
    with Filesystems(s3) as filesystems, closing(read_table(path, filesystems.of(path).open)) as rows:
        for row in rows:
            if row.problem:
                raise SourceError(f"{printable(path)}: {row.place}: {row.problem}")
            yield from _in_row(row.place, row.values)


def _in_row(where: str, row: Mapping[str, object]) -> Iterator[Expected]:
    masks = [mask for column, value in row.items() if column != "locator" for mask in _in_cell(value)]
    for mask in (*masks, *_in_cell(row.get("locator"))):
        yield _expected(where, mask, is_overlay=mask.get("data_type") == DATA_TYPE)
    if isinstance(locator := row.get("locator"), str) and "://" in locator[:10]:
        yield _expected(where, row, is_overlay=not masks)


def _in_cell(value: object) -> Iterator[Mapping[str, Any]]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and value[:1] in {"{", "["} and '"locator"' in value:
            try:
                waiting.append(json.loads(value))
            except (ValueError, RecursionError):
                continue
        elif isinstance(value, list):
            waiting.extend(reversed(value))
        elif isinstance(value, dict):
            if isinstance(value.get("locator"), str):
                yield value
            waiting.extend(value.values())


def _expected(where: str, fields: Mapping[str, Any], *, is_overlay: bool) -> Expected:
    etag, crc32 = fields.get("etag"), str(fields.get("crc32") or "")
    return Expected(
        locator=canonical(_plain(fields["locator"])),
        name=where,
        size=_number(fields.get("bytes")),
        etag=_plain(etag) if isinstance(etag, str) and etag else None,
        # Programs that read it as a number drop leading zeros.
        crc32=crc32.zfill(8) if _CRC32.fullmatch(crc32) else None,
        width=_number(fields.get("width")),
        height=_number(fields.get("height")),
        is_overlay=is_overlay,
    )


def _plain(text: str) -> str:
    """Replace lone surrogates, which SQLite refuses."""
    return text.encode("utf-8", "replace").decode()


def _number(value: object) -> int | None:
    """Parse a whole number, also if it was written as a float; None for others, and for those that SQLite refuses."""
    try:
        number = float(value)  # type: ignore[arg-type]  # TypeError says so
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and abs(number) < 2**63 else None
