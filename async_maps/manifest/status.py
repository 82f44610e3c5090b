"""What a manifest says about its last run, read while a run writes it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from async_maps.errors import ManifestError
from async_maps.filesystems.endpoints import Identity
from async_maps.manifest.lock import holder_of
from async_maps.manifest.manifest import Manifest
from async_maps.outcomes import Failure
from async_maps.report.failure_groups import FailureGroup, FailureGroups

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from async_maps.manifest.samples import LastRun, Sample

State: TypeAlias = Literal["running", "complete", "stopped", "lost", "empty"]

_WINDOW_S = 60.0
STALE_S = 30.0
"""A run that has written no sample for this time may hang: nothing is said about its speed."""
_MAX_GROUPED = 20_000
_TRIES, _WAIT_S = 20, 0.05


@dataclass(frozen=True, slots=True)
class ManifestStatus:
    """The state of a manifest and of the run that wrote it last.

    Times are UTC in ISO 8601.

    Attributes:
        manifest: the file.
        state: ``running``; ``complete``: the last run has done all that it selected, but maps may have failed;
            ``stopped``: it ended early, by a signal or the ``error``; ``lost``: it has not recorded its end, and no
            process on this machine writes the manifest; ``empty``: there was no run.
        writer: the process that has locked the manifest now; None if there is none on this machine. With another state
            than ``running``, a run is just beginning or ending, or overlays are repaired.
        destination: the destination of the overlays; None if there was no run.
        done: maps that are done, by all runs.
        failed: maps that have failed and are not done since.
        failure_groups: the failed maps by reason, the most frequent first; of 20,000 failed maps, if there are more.
        ungrouped: failed maps that are in none of the groups.
        started_at: when the last run started; None if there was no run.
        ended_at: when it ended; None if it did not record that.
        error: the error that ended it, as its ``kind`` and its ``message``.
        source: its source; None if that is no path.
        select: the maps that it selected, as in :func:`~async_maps.run`.
        limit: the number of maps that it was limited to.
        total: maps in its source, or the limit; None if they are not counted (yet).
        listed: maps of its source that were found so far; the source has at least as many.
        surveyed: maps that it read for the range of the whole set.
        uploaded: maps that it uploaded.
        skipped: maps that it skipped.
        newly_failed: maps that failed in it.
        retries: upload attempts that failed and were retried.
        upload_limit: the maximum number of concurrent uploads; it falls after uploads have timed out.
        upload_rate: the maximum of PUTs a second, by ``rate`` or because the store asks for fewer requests; None if it
            delays none.
        maps_per_s: uploaded and failed maps per second, in the last minute of the run; None if that is unknown.
        eta_s: the estimated seconds to the end of a run that goes on; None if that is unknown.
        slowest_stage: the stage whose workers were busiest in that minute; None if that is unknown.
        busy: for each stage, the share of that minute that its workers were busy, 0 to 1.
        queues: for each stage, how full its queue is, 0 to 1.
        last_progress_at: when it last uploaded, failed, skipped or surveyed a map, to about 5 seconds.
        last_write_at: when it last wrote the manifest, which it does every 5 seconds.
    """

    manifest: str
    state: State
    writer: str | None
    destination: str | None
    done: int
    failed: int
    failure_groups: list[FailureGroup]
    ungrouped: int
    started_at: str | None = None
    ended_at: str | None = None
    error: dict[str, str] | None = None
    source: str | None = None
    select: str | None = None
    limit: int | None = None
    total: int | None = None
    listed: int = 0
    surveyed: int = 0
    uploaded: int = 0
    skipped: int = 0
    newly_failed: int = 0
    retries: int = 0
    upload_limit: int | None = None
    upload_rate: float | None = None
    maps_per_s: float | None = None
    eta_s: float | None = None
    slowest_stage: str | None = None
    busy: dict[str, float] = field(default_factory=dict)
    queues: dict[str, float] = field(default_factory=dict)
    last_progress_at: str | None = None
    last_write_at: str | None = None

    @property
    def seen(self) -> int:
        """The number of maps that the last run has uploaded, skipped or failed."""
        return self.uploaded + self.skipped + self.newly_failed

    def as_dict(self) -> dict[str, Any]:
        """Return all attributes as a dict of plain values, for JSON."""
        return asdict(self)


def status(manifest: str | PathLike[str]) -> ManifestStatus:
    """Read how far the last run of a manifest is, also while it writes; the run is not disturbed.

    Args:
        manifest: the file.

    Returns:
        The status.

    Raises:
        ManifestError: the file does not exist, is not a manifest, or cannot be read.
    """
    writer = holder_of(manifest)
    with _open(manifest) as opened, opened.snapshot():
        counts, run = opened.counts(), opened.last_run()
        samples = [] if run is None else opened.samples(run)
        groups = FailureGroups()
        for name, source, stage, reason in opened.reasons(_MAX_GROUPED):
            groups.add(Failure(name, source, None, stage, reason))
        identity = opened.destination()
    if writer is None and run is not None and run.ended_at is None:
        # It may have begun between the two looks.
        writer = holder_of(manifest)
    grouped = sorted(groups.groups(), key=lambda group: -group.count)
    return ManifestStatus(
        manifest=str(manifest),
        state=state_of(run, is_written=writer is not None),
        writer=None if writer is None else writer.text,
        destination=None if identity is None else Identity.parse(identity).destination,
        done=counts.get("done", 0),
        failed=counts.get("failed", 0),
        failure_groups=grouped,
        ungrouped=counts.get("failed", 0) - sum(group.count for group in grouped),
        **({} if run is None else _run_of(run) | progress_of(run, samples)),
    )


def _open(path: str | PathLike[str]) -> Manifest:
    for _ in range(_TRIES):
        try:
            return Manifest(path, read_only=True)
        except ManifestError:
            # A run may just be creating it.
            if holder_of(path) is None:
                break
            time.sleep(_WAIT_S)
    return Manifest(path, read_only=True)


def state_of(run: LastRun | None, *, is_written: bool) -> State:
    """Return the state of a run; ``is_written`` says whether a process writes the manifest now."""
    if run is None:
        return "empty"
    if run.ended_at is None:
        return "running" if is_written else "lost"
    return "complete" if run.complete else "stopped"


def _run_of(run: LastRun) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("started_at", "ended_at", "error", "source", "select", "limit")}


def progress_of(run: LastRun, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the progress of a run from its samples, as attributes of :class:`ManifestStatus`; empty without one."""
    if not samples:
        return {}
    last = samples[-1]
    progress: dict[str, Any] = {
        name: getattr(last, name)
        for name in ("total", "listed", "surveyed", "uploaded", "skipped", "retries", "upload_limit")
    }
    now = datetime.now(UTC)
    age_s = (now - _moment(last)).total_seconds()
    first_same = next(sample for sample in samples if (sample.seen, sample.surveyed) == (last.seen, last.surveyed))
    window = [sample for sample in samples if (_moment(last) - _moment(sample)).total_seconds() <= _WINDOW_S]
    seconds = (_moment(last) - _moment(window[0])).total_seconds()
    done = last.uploaded + last.failed - window[0].uploaded - window[0].failed
    is_fresh = run.ended_at is not None or age_s <= STALE_S
    busy = {
        name: round(sum(sample.stages[name]["busy"] for sample in window[1:]) / len(window[1:]), 3)
        for name in (last.stages if len(window) > 1 else ())
    }
    # Less than 0 if the clock was set back.
    rate = done / seconds if seconds > 0 and is_fresh else None
    eta_s = None
    if rate and run.ended_at is None and last.total is not None:
        eta_s = round(max(0.0, (last.total - last.seen) / rate - age_s), 1)
    return progress | {
        "newly_failed": last.failed,
        "upload_rate": last.stages.get("upload", {}).get("rate"),
        "maps_per_s": None if rate is None else round(rate, 2),
        "eta_s": eta_s,
        "slowest_stage": max(busy, key=lambda name: busy[name]) if any(busy.values()) and is_fresh else None,
        "busy": busy,
        "queues": {name: stage["queue"] for name, stage in last.stages.items()},
        "last_progress_at": first_same.time,
        "last_write_at": last.time,
    }


def _moment(sample: Sample) -> datetime:
    return datetime.fromisoformat(sample.time)
