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
VERSION = 7
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
    {", ".join(f"{column} {_TYPES[column]}" for column in MapStatistics._fields)},
    -- The file of the source; null if that is the value of source.
    file TEXT,
    -- The source that listed the map last; null if it is unknown.
    root INTEGER REFERENCES roots (id)
);
-- The places that names are relative to.
CREATE TABLE roots (id INTEGER PRIMARY KEY, place TEXT NOT NULL UNIQUE);
-- Maps whose overlay may be in the store, though no row says so.
CREATE TABLE sent (
    name TEXT NOT NULL,
    settings TEXT NOT NULL,
    is_new INTEGER NOT NULL,
    -- Of the row that the map had before it failed; else null.
    locator TEXT,
    file TEXT,
    root INTEGER,
    PRIMARY KEY (name, settings)
) WITHOUT ROWID;
-- The progress of runs: see samples.py.
CREATE TABLE samples (
    started_at TEXT NOT NULL,
    time TEXT NOT NULL,
    total INTEGER,
    listed INTEGER NOT NULL,
    surveyed INTEGER NOT NULL,
    uploaded INTEGER NOT NULL,
    skipped INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    retries INTEGER NOT NULL,
    upload_limit INTEGER NOT NULL,
    stages TEXT NOT NULL
);
-- Not unique for maps that were refused at their source, such as a second map with the same name.
CREATE UNIQUE INDEX maps_name ON maps (name) WHERE stage IS NOT 'source';
CREATE INDEX maps_refused ON maps (source) WHERE stage = 'source';
CREATE INDEX maps_failed ON maps (ifnull(file, source)) WHERE status = 'failed';
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""
_WRITTEN = (*COLUMNS, "file", "root")
UPSERT = f"""
INSERT INTO maps ({", ".join(_WRITTEN)}) VALUES ({", ".join("?" * len(_WRITTEN))})
ON CONFLICT (name) WHERE stage IS NOT 'source'
DO UPDATE SET {", ".join(f"{column} = excluded.{column}" for column in _WRITTEN[1:])}
"""  # noqa: S608  # column names of our own
