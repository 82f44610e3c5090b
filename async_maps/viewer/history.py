"""The progress of the last run of a manifest, from its samples. Blocks."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from async_maps.errors import ManifestError
from async_maps.manifest.status import progress_of, state_of

if TYPE_CHECKING:
    from async_maps.viewer.rows import ViewedRows

_logger = logging.getLogger("async_maps")


def history(rows: ViewedRows, since: str = "") -> dict[str, Any]:
    """Return the state of the last run, and its samples after a time, for JSON; of a copy, those of its moment."""
    is_written = rows.is_written()
    found: dict[str, Any] = {"state": state_of(None, is_written=is_written), "run": None, "samples": []}
    found["is_copy"] = rows.is_copy
    try:
        with rows.opened() as manifest, manifest.snapshot():
            run = manifest.last_run()
            samples = [] if run is None else manifest.samples(run)
        if run is not None:
            told = run._asdict() | progress_of(run, samples)
            shown = [sample._asdict() for sample in samples if sample.time > since]
            # JSON has no infinity.
            json.dumps([told, shown], allow_nan=False)
            found |= {"state": state_of(run, is_written=is_written), "run": told, "samples": shown}
    except (ManifestError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, ManifestError) and not isinstance(error.__cause__, ValueError):
            raise
        _logger.debug("the last run in the manifest cannot be read: %s", error)
    return found
