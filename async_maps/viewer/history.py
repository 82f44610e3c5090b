"""The progress of the last run of a manifest, from its samples. Blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_maps.manifest.lock import holder_of
from async_maps.manifest.status import progress_of, state_of

if TYPE_CHECKING:
    from async_maps.viewer.rows import ViewedRows


def history(rows: ViewedRows, since: str = "") -> dict[str, Any]:
    """Return the state of the last run, and its samples after a time, for JSON."""
    writer = None if rows.is_copy else holder_of(rows.path)
    with rows.opened() as manifest, manifest.snapshot():
        run = manifest.last_run()
        samples = [] if run is None else manifest.samples(run)
    found: dict[str, Any] = {"state": state_of(run, is_written=writer is not None), "run": None, "samples": []}
    if run is not None:
        found["run"] = run._asdict() | progress_of(run, samples)
        found["samples"] = [sample._asdict() for sample in samples if sample.time > since]
    return found
