"""The result of a run."""

from __future__ import annotations

from contextlib import aclosing
from copy import copy
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Self

from async_maps.outcomes import Receipt
from async_maps.report.ending import DONE, SOME_FAILED, STOPPED_EARLY, Ending
from async_maps.report.failure_groups import FailureGroup, FailureGroups
from async_maps.sources.options import shown_passed_over

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from async_maps.outcomes import Failure, Outcome
    from async_maps.sources.batches import Entry
    from async_maps.stages.meters import Statistics

MAX_LISTED_FAILURES = 1000
"""The maximum number of failures that a report lists, and of forgotten names; the manifest has every failure."""
MAX_SUFFIXES = 30
"""The maximum number of suffixes in ``passed_over``, including ``others``."""


@dataclass(slots=True)
class Report(Ending):
    """The result of a run or a dry run.

    Attributes:
        dry_run: whether this was a dry run: ``planned`` counts maps instead of ``uploaded``.
        destination: the destination of the overlays.
        manifest: the manifest that has a row for each map; None without one.
        settings: the settings as plain values; empty if they are not valid.
        started_at: the time of the start, in UTC.
        ended_at: the time of the end, in UTC; None before it.
        complete: whether each selected map of the source is done or failed.
        error: the error that ended the run early, as its ``kind`` and its ``message``; else None.
        exit_code: the exit code of the command with this ending; None before the end.
        total: the number of maps in the source; None if it is not known.
        selected: maps that were selected so far. At the end of a complete run, each is done or failed.
        limit: the number of maps of the source that the run was limited to; None for all.
        uploaded: maps whose overlay the store has confirmed in this run.
        planned: maps that a dry run would do; their names and headers are valid, their values are not read yet.
        skipped: maps that were skipped: done before and unchanged, or not selected.
        unselected: skipped maps that had not failed before, with ``select="failed"``.
        passed_over: files and arrays of the source that are no maps: files by suffix (``{".jpg": 5}``, ``""`` without
            one), others by what they are (``{"arrays below two dimensions": 3}``).
        failed: maps that failed in this run; in a dry run, maps that are already known to fail.
        not_found: maps that failed in an earlier run and are selected by name, but are no longer in the source.
        forgotten: rows that were removed from the manifest, because their map is no longer in the source; in a dry run,
            rows that would be.
        forgotten_names: the names of the first 1,000 of them.
        deleted: overlays that were deleted with ``prune="objects"``; in a dry run, overlays that would be.
        undeleted: overlays that could not be deleted.
        surveyed: maps that were read for the range of the whole set.
        unsurveyed: surveyed maps that could not be read.
        survey_s: the seconds of the survey, a part of ``elapsed_s``.
        range_low: the value with intensity 0; None if each map has its own range, and for ``unit``.
        range_high: the value with intensity 255; None as for ``range_low``.
        constant: uploaded maps whose values are all the same.
        invalid: uploaded maps with NaN or infinite values.
        transparent: uploaded maps whose overlay is fully transparent.
        faint: uploaded maps whose overlay is nearly invisible, but not fully transparent; see
            :class:`~async_maps.MapStatistics`.
        uploaded_bytes: bytes of the uploaded PNGs.
        elapsed_s: the duration in seconds.
        drained: whether it was stopped before the end of the source.
        failures: the first 1,000 failures.
        warnings: what to check after the run, such as overlays that cannot be seen; also logged.
        statistics: the statistics of the pipeline; None for a dry run.
    """

    dry_run: bool = False
    destination: str = ""
    manifest: str | None = None
    total: int | None = None
    selected: int = 0
    limit: int | None = None
    uploaded: int = 0
    planned: int = 0
    skipped: int = 0
    unselected: int = 0
    passed_over: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    not_found: int = 0
    forgotten: int = 0
    forgotten_names: list[str] = field(default_factory=list)
    deleted: int = 0
    undeleted: int = 0
    surveyed: int = 0
    unsurveyed: int = 0
    survey_s: float = 0.0
    range_low: float | None = None
    range_high: float | None = None
    constant: int = 0
    invalid: int = 0
    transparent: int = 0
    faint: int = 0
    uploaded_bytes: int = 0
    drained: bool = False
    failures: list[Failure] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    statistics: Statistics | None = None
    _groups: FailureGroups = field(default_factory=FailureGroups, init=False, repr=False, compare=False)
    _is_listed: bool = field(default=False, init=False, repr=False, compare=False)

    @property
    def failure_groups(self) -> list[FailureGroup]:
        """The failures by reason: at most 50 groups, in the order of their first failures."""
        return self._groups.groups()

    @property
    def ungrouped(self) -> int:
        """The number of failures that are not in a group."""
        return self._groups.rest

    @property
    def done(self) -> int:
        """The number of selected maps that are done: the store has confirmed their overlays."""
        return self.uploaded

    @property
    def has_reached_store(self) -> bool:
        """Whether the store has accepted an overlay in this run."""
        return self.uploaded > 0

    @property
    def seen(self) -> int:
        """The number of maps found in the source."""
        return self.uploaded + self.planned + self.skipped + self.failed

    def copy(self) -> Self:
        """Return a copy, which the run does not change."""
        copied = copy(self)
        for known in fields(self):
            if isinstance(value := getattr(self, known.name), list | dict):
                setattr(copied, known.name, value.copy())
        copied._groups = self._groups.copy()
        return copied

    def end(self, error: BaseException | None = None) -> None:
        """Record the end of the run.

        Args:
            error: what ended the run early, whose ``report`` this becomes; None if nothing did.
        """
        self.complete = error is None and not self.drained
        # A limited run that found fewer maps has seen the whole source.
        if self.complete and (self.limit is None or self.seen < self.limit):
            self.total = self.seen
        code = SOME_FAILED if self.failed or self.not_found or self.undeleted else DONE
        self.close(error, STOPPED_EARLY if self.drained else code)

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes.

        Args:
            outcomes: the outcomes of further maps.
        """
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                self.uploaded += 1
                self.uploaded_bytes += outcome.size
                self.constant += outcome.statistics.constant
                self.invalid += outcome.statistics.invalid_pixels > 0
                self.transparent += outcome.statistics.transparent
                self.faint += outcome.statistics.faint
            else:
                self.failed += 1
                self._groups.add(outcome)
                if len(self.failures) < MAX_LISTED_FAILURES:
                    self.failures.append(outcome)

    def forget(self, names: Sequence[str]) -> None:
        """Count rows that are removed from the manifest.

        Args:
            names: the names of further maps.
        """
        self.forgotten += len(names)
        self.forgotten_names += names[: MAX_LISTED_FAILURES - len(self.forgotten_names)]

    def pass_over(self, what: str) -> None:
        """Count a file or an array of the source that is no map.

        Args:
            what: the suffix of a file, with the dot, empty if it has none; or what it is.
        """
        if what not in self.passed_over and len(self.passed_over) >= MAX_SUFFIXES - 1:
            what = "others"
        self.passed_over[what] = self.passed_over.get(what, 0) + 1

    def summary(self) -> str:
        """Return the report in a few lines, for people; it names the slowest stage."""
        if self.dry_run:
            return self._plan()
        elapsed_s = self.elapsed_s - self.survey_s
        rate = self.uploaded / elapsed_s if elapsed_s > 0 else 0.0
        to = f" to {self.destination}" if self.destination else ""
        lines = [
            f"{self.uploaded:,} uploaded, {self.skipped:,} skipped, {self.failed:,} failed",
            f"{self.elapsed_s:.1f} s, {rate:,.0f} maps/s, {self.uploaded_bytes / 1e6:,.1f} MB{to}",
        ]
        if self.passed_over:
            lines.append(shown_passed_over(self.passed_over))
        if self.range_low is not None:
            lines.append(f"colors span {self.range_low:.6g} to {self.range_high:.6g}")
        if self.surveyed:
            lines.append(f"first pass: {self.surveyed:,} maps in {self.survey_s:.1f} s")
        if self.unsurveyed:
            unread = counted(self.unsurveyed, "map")
            lines.append(f"{unread} could not be read for the range: the next run computes it again")
        counts = {
            "skipped because they did not fail before": self.unselected,
            "constant maps, with one color": self.constant,
            "maps with NaN or infinity": self.invalid,
            "fully transparent overlays": self.transparent,
            "nearly invisible overlays": self.faint,
            "retried uploads": 0 if self.statistics is None else self.statistics.retries,
            "abandoned maps, which may or may not be stored": 0
            if self.statistics is None
            else self.statistics.abandoned,
        }
        lines += [f"{what}: {count:,}" for what, count in counts.items() if count]
        lines += self._gone()
        if self.drained:
            lines.append("stopped before the end of the source; run it again for the rest")
        if self.limit is not None and self.seen >= self.limit:
            lines.append(self._limited())
        if self.statistics is not None and self.uploaded:
            stage, share = self.statistics.slowest_stage(elapsed_s)
            lines.append(f"slowest stage: {stage}, busy {share:.0%} of the time")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as a dict of plain values, for JSON, as ``report.schema.json`` describes it."""
        groups = [asdict(group) for group in self.failure_groups]
        own = {"done": self.done, "failure_groups": groups, "ungrouped": self.ungrouped}
        return self.with_ending("run", {**asdict(self), **own})

    def _plan(self) -> str:
        skipped = f"{self.skipped - self.unselected:,} skipped as unchanged"
        if self.unselected:
            skipped = f"{self.skipped:,} skipped because they did not fail before"
        listed = f"{counted(self.seen, 'map')} listed: {self.planned:,} would be done, {skipped}"
        unread = f"the values of {counted(self.planned, 'map')} are not read yet"
        lines = [f"{listed}, {self.failed:,} would fail by name or header; {unread}; destination {self.destination}"]
        if self.passed_over:
            lines.append(shown_passed_over(self.passed_over))
        lines += self._gone()
        if self.limit is not None and self.seen >= self.limit:
            lines.append(self._limited())
        return "\n".join(lines)

    def _gone(self) -> list[str]:
        """Return lines about maps that are no longer in the source."""
        would = "would be " if self.dry_run else ""
        counts = {
            f"rows {would}forgotten, whose map is no longer in the source": self.forgotten,
            f"overlays {would}deleted": self.deleted,
            "overlays that could not be deleted": self.undeleted,
            "failed maps of earlier runs that are gone; a run without include and exclude forgets them": self.not_found,
        }
        return [f"{what}: {count:,}" for what, count in counts.items() if count]

    def _limited(self) -> str:
        return (
            f"limited to the first {counted(self.limit or 0, 'map')} of the source; run without the limit for all maps"
        )


async def counting_selected(
    listing: AsyncGenerator[list[Entry], None], report: Report
) -> AsyncGenerator[list[Entry], None]:
    """Count the maps of a listing as selected, and note its end."""
    async with aclosing(listing):
        async for batch in listing:
            report.selected += len(batch)
            yield batch
        report._is_listed = True


def counted(count: int, noun: str) -> str:
    """Return a number and its noun: ``1 map``, ``1,234 maps``."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
