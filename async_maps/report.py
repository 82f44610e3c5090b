"""What a run ends with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from async_maps.outcomes import Receipt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from async_maps.outcomes import Failure, Outcome
    from async_maps.stages.meters import Statistics

MAX_LISTED_FAILURES = 1000
"""The maximum number of failures that a report lists; the manifest has every one."""


@dataclass(slots=True)
class Report:
    """What a run did.

    Attributes:
        destination: where the overlays went.
        uploaded: maps that the store has answered for in this run.
        planned: maps that a dry run says would be done.
        skipped: maps that were left out: done before and unchanged, or not asked for.
        failed: maps that failed in this run.
        surveyed: maps that were looked at for the range of the whole set.
        unsurveyed: those of them that could not be read.
        survey_s: seconds that took, which are part of ``elapsed_s``.
        range_low: the value that the colors start at; None where each map has its own, and for unit.
        range_high: the value that they end at.
        constant: uploaded maps that have one value throughout.
        invalid: uploaded maps with NaN or infinity in them.
        uploaded_bytes: bytes of the PNGs.
        elapsed_s: seconds it took.
        drained: whether it was stopped before the end of the source.
        failures: the first failures.
        statistics: what each stage did; None for a dry run.
    """

    destination: str = ""
    uploaded: int = 0
    planned: int = 0
    skipped: int = 0
    failed: int = 0
    surveyed: int = 0
    unsurveyed: int = 0
    survey_s: float = 0.0
    range_low: float | None = None
    range_high: float | None = None
    constant: int = 0
    invalid: int = 0
    uploaded_bytes: int = 0
    elapsed_s: float = 0.0
    drained: bool = False
    failures: list[Failure] = field(default_factory=list)
    statistics: Statistics | None = None

    @property
    def seen(self) -> int:
        """Maps that were found in the source."""
        return self.uploaded + self.planned + self.skipped + self.failed

    def copy(self) -> Report:
        """Return the report of this moment, which the run no longer changes."""
        return replace(self, failures=self.failures[:])

    def count(self, outcomes: Sequence[Outcome]) -> None:
        """Count outcomes.

        Args:
            outcomes: those of further maps.
        """
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                self.uploaded += 1
                self.uploaded_bytes += outcome.size
                self.constant += outcome.statistics.constant
                self.invalid += outcome.statistics.invalid_pixels > 0
            else:
                self.failed += 1
                if len(self.failures) < MAX_LISTED_FAILURES:
                    self.failures.append(outcome)

    def summary(self) -> str:
        """Return the report in a few lines, for people; it names the slowest stage."""
        elapsed_s = self.elapsed_s - self.survey_s
        rate = self.uploaded / elapsed_s if elapsed_s > 0 else 0.0
        lines = [
            f"{self.uploaded:,} uploaded, {self.skipped:,} skipped, {self.failed:,} failed",
            f"{self.elapsed_s:.1f} s, {rate:,.0f} maps/s, {self.uploaded_bytes / 1e6:,.1f} MB to {self.destination}",
        ]
        if self.range_low is not None:
            lines.append(f"colors span {self.range_low:.6g} to {self.range_high:.6g}")
        if self.surveyed:
            lines.append(f"first pass: {self.surveyed:,} maps in {self.survey_s:.1f} s")
        if self.unsurveyed:
            lines.append(
                f"{self.unsurveyed:,} maps could not be read for the range of all: the next run looks at all again"
            )
        if self.constant:
            lines.append(f"constant, of a single color: {self.constant:,}")
        if self.invalid:
            lines.append(f"with NaN or infinity in them: {self.invalid:,}")
        if self.statistics is not None and self.statistics.retries:
            lines.append(f"retried uploads: {self.statistics.retries:,}")
        if self.drained:
            lines.append("stopped before the end of the source; run it again for the rest")
        if self.statistics is not None and self.uploaded:
            stage, share = self.statistics.slowest_stage(elapsed_s)
            lines.append(f"slowest stage: {stage}, busy {share:.0%} of the time")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Return the report for machines: every attribute, plain values only."""
        return asdict(self)
