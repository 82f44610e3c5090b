"""The record of every map, an SQLite file, and what is exported from it."""
