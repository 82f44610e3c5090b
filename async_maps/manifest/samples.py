"""The last run of a manifest and samples of its progress, which :mod:`.status` reads. Everything here blocks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from async_maps.manifest.metadata import ManifestMetadata

if TYPE_CHECKING:
    from typing import Any

_MAX_SAMPLES = 1000
"""When there are as many, every second one is deleted: the older they are, the further apart."""


class LastRun(NamedTuple):
    """The run that wrote the manifest last.

    Attributes:
        started_at: when it started, in UTC and ISO 8601.
        source: its source; None if that is no path.
        select: the maps that it selected.
        limit: the number of maps that it was limited to; None for all.
        ended_at: when it ended; None if it has not, or was killed.
        complete: whether it did all that it selected; maps may have failed.
        error: the error that ended it, its class as ``kind`` and its ``message``; None if there was none.
    """

    started_at: str
    source: str | None
    select: str
    limit: int | None
    ended_at: str | None = None
    complete: bool = False
    error: dict[str, str] | None = None


class Sample(NamedTuple):
    """The progress of a run at one moment; a row of the table ``samples``.

    Attributes:
        started_at: the start of its run, as in :class:`LastRun`.
        time: the moment, in UTC and ISO 8601.
        total: maps in the source, or the limit of the run; None if they are not counted.
        listed: maps that were found so far; at least as many are in the source.
        surveyed: maps that were read for the range of the whole set.
        uploaded: maps that this run uploaded.
        skipped: maps that were skipped.
        failed: maps that failed in this run.
        retries: upload attempts that failed and were retried.
        upload_limit: the maximum number of concurrent uploads at this moment.
        stages: of each stage, the share of the time since the last sample that its workers were busy, the share of its
            queue that is full, and its workers; of the uploads, the maximum of PUTs per second too, if there was one.
    """

    started_at: str
    time: str
    total: int | None
    listed: int
    surveyed: int
    uploaded: int
    skipped: int
    failed: int
    retries: int
    upload_limit: int
    stages: dict[str, dict[str, float]]

    @property
    def seen(self) -> int:
        """The number of maps with an outcome in this run, or skipped by it."""
        return self.uploaded + self.skipped + self.failed


class ManifestSamples(ManifestMetadata):
    """The last run of a manifest, and samples of the progress of its runs, at most 1,000."""

    def keep_sample(self, run: LastRun, sample: Sample) -> None:
        """Save the state of the last run, and a sample of its progress."""
        with self._writing() as database:
            self._save(database, "last run", run)
            if database.execute("SELECT count(*) FROM samples").fetchone()[0] >= _MAX_SAMPLES:
                database.execute(
                    "DELETE FROM samples WHERE rowid IN (SELECT rowid FROM "
                    "(SELECT rowid, row_number() OVER (ORDER BY rowid) AS place FROM samples) WHERE place % 2 = 1)"
                )
            values = (*sample[:-1], json.dumps(sample.stages))
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO samples VALUES ({marks})", values)  # noqa: S608  # question marks

    def last_run(self) -> LastRun | None:
        """Return the run that wrote the manifest last, or None; repairs do not count."""
        with self._reading():
            found: list[Any] | None = next(self._kept("last run"), None)
            return None if found is None else LastRun(*found)

    def samples(self, run: LastRun) -> list[Sample]:
        """Return the samples of a run, the oldest first."""
        with self._reading() as database:
            rows = database.execute("SELECT * FROM samples WHERE started_at = ? ORDER BY rowid", (run.started_at,))
            return [Sample._make((*row[:-1], json.loads(row[-1]))) for row in rows]
