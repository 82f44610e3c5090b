"""The table of a manifest: its columns, their types, and how it is made."""

from __future__ import annotations

from async_maps.outcomes import MapStatistics

COLUMNS = (
    "name", "locator", "status", "source", "bytes", "width", "height", "etag", "crc32", "time", "stage", "error",
    "fingerprint", "settings", *MapStatistics._fields,
)  # fmt: skip
"""The columns of the table ``maps``.

``locator``, ``bytes``, ``width``, ``height``, ``etag``, ``crc32`` and those of
:class:`~async_maps.MapStatistics` are null unless ``status`` is ``done``, or ``stage`` is ``verify``: then they
are of what should lie there. ``stage`` and ``error`` are null unless ``status`` is ``failed``. ``time`` is UTC in ISO
8601. ``fingerprint`` is the source's state, ``settings`` that of the settings which shape the bytes.
"""

INTEGERS = {"bytes", "width", "height", "invalid_pixels"}
FLOATS = {"minimum", "maximum", "mean", "range_low", "range_high", "high_share", "entropy", "center_x", "center_y"}
BOOLEANS = {"constant"}
"""The columns that are not text."""

APPLICATION_ID = 0x414D4150  # "AMAP"
VERSION = 4
_TYPES = {**dict.fromkeys(INTEGERS | BOOLEANS, "INTEGER"), **dict.fromkeys(FLOATS, "REAL")}
SCHEMA = f"""
BEGIN;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE maps (
    name TEXT NOT NULL,
    locator TEXT,
    status TEXT NOT NULL CHECK (status IN ('done', 'failed')),
    source TEXT NOT NULL,
    bytes INTEGER,
    width INTEGER,
    height INTEGER,
    etag TEXT,
    crc32 TEXT,
    time TEXT NOT NULL,
    stage TEXT,
    error TEXT,
    fingerprint TEXT,
    settings TEXT NOT NULL,
    {", ".join(f"{column} {_TYPES[column]}" for column in MapStatistics._fields)}
);
-- A map refused at its source (a second one of the same name, say) has no claim on the name.
CREATE UNIQUE INDEX maps_name ON maps (name) WHERE stage IS NOT 'source';
CREATE INDEX maps_refused ON maps (source) WHERE stage = 'source';
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""
UPSERT = f"""
INSERT INTO maps ({", ".join(COLUMNS)}) VALUES ({", ".join("?" * len(COLUMNS))})
ON CONFLICT (name) WHERE stage IS NOT 'source'
DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in COLUMNS[1:])}
"""  # noqa: S608  # column names of our own
