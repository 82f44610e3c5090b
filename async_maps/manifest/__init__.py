"""The manifest: an SQLite file with a row for each map, and the export of tables from it."""
