"""The schema of a manifest."""

from __future__ import annotations

from async_maps.outcomes import MapStatistics

COLUMNS = (
    "name", "locator", "status", "source", "bytes", "width", "height", "etag", "crc32", "time", "stage", "error",
    "fingerprint", "settings", *MapStatistics._fields,
)  # fmt: skip
"""The columns of the table ``maps``.

``locator``, ``bytes``, ``width``, ``height``, ``etag``, ``crc32`` and the columns of
:class:`~async_maps.MapStatistics` are null unless ``status`` is ``done`` or ``stage`` is ``verify``; in the latter case
they describe the expected overlay. ``stage`` and ``error`` are null unless ``status`` is ``failed``. ``time`` is UTC in
ISO 8601. ``fingerprint`` is the state of the source, ``settings`` the fingerprint of the settings that affect overlays.
"""

INTEGERS = {"bytes", "width", "height", "invalid_pixels"}
FLOATS = {"minimum", "maximum", "mean", "range_low", "range_high", "high_share", "entropy", "center_x", "center_y"}
BOOLEANS = {"constant", "transparent", "faint"}
"""The columns that are not text."""

APPLICATION_ID = 0x414D4150  # "AMAP"
VERSION = 5
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
-- Not unique for maps that were refused at their source, such as a second map with the same name.
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
