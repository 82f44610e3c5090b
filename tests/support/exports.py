"""Read exported tables as other programs do."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING, Any

import pytest

from async_maps.manifest.schema import BOOLEANS, COLUMNS, FLOATS, INTEGERS
from tests.support.installed import needs_parquet

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SUFFIXES = (".csv", pytest.param(".parquet", marks=needs_parquet), ".jsonl")
EXPORTED_NAMES = (
    *("plain", "with, comma", 'with "quotes"', "with 'quotes'", "semi;colon", " blanks ", "back\\slash", "=1+1"),
    *("é/ü", "cafe\N{COMBINING ACUTE ACCENT}", "日本語", "🧠🔥", "\u2028", "%41 + ?#&"),
)  # fmt: skip


def read_exported(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a table with all columns."""
    if file.suffix.lower() == ".parquet":
        import pyarrow.parquet as pq

        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows
    if file.suffix.lower() == ".jsonl":
        return [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
    with file.open(newline="", encoding="utf-8") as opened:
        reader = csv.DictReader(opened)
        assert tuple(reader.fieldnames or ()) == COLUMNS
        of_text: dict[str, Callable[[str], object]] = {
            **dict.fromkeys(INTEGERS, int),
            **dict.fromkeys(FLOATS, float),
            **dict.fromkeys(BOOLEANS, {"True": True, "False": False}.__getitem__),
        }
        return [
            {column: None if text == "" else of_text.get(column, str)(text) for column, text in row.items()}
            for row in reader
        ]


def read_any(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a table with any columns; in CSV, all values are text."""
    if file.suffix != ".csv":
        return read_exported(file)
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))
