"""Lanes: processes that each run all stages, so that one event loop is not the limit of a machine with many cores."""
