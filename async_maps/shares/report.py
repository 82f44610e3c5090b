"""The report and the progress of a share: those of its parts together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from async_maps.progress import Progress
from async_maps.report import MAX_LISTED_FAILURES, Report, counted
from async_maps.report.ending import DONE, STOPPED_EARLY
from async_maps.shares.part import PartDone, PartFailed

if TYPE_CHECKING:
    from async_maps.shares.engine import PartOutcome, Task
    from async_maps.stages.meters import Statistics

_SUMMED = (
    "selected", "uploaded", "skipped", "failed", "constant", "invalid", "transparent", "faint", "uploaded_bytes",
    "surveyed", "unsurveyed",
)  # fmt: skip
_MAX_WARNINGS = 30
_SHOWN = 3


@dataclass(slots=True)
class ShareReport(Report):
    """The result of a share of a plan: the :class:`Report` of all maps that it has tried, and its parts.

    A share with failed maps ends with exit code 0, so that no scheduler repeats it: the commit of the plan tells of
    them. ``total`` is None.

    Attributes:
        plan: the address of the plan.
        part: which share of how many, from 1.
        task: what it did with the parts: ``run``, ``retry`` or ``survey``.
        parts: the number of parts of the plan.
        to_do: the parts that it had to do: its own that were not committed at its start, and those that it has taken
            from other shares at the end.
        committed: the parts that it has committed.
        done_by_others: the parts that another share has committed meanwhile.
        unchanged: the parts in which a retry has changed nothing: the same maps fail for the same reasons.
        unfinished: the parts that could not be run, each with the reason.
    """

    plan: str = ""
    part: tuple[int, int] = (1, 1)
    task: Task = "run"
    parts: int = 0
    to_do: int = 0
    committed: list[int] = field(default_factory=list)
    done_by_others: list[int] = field(default_factory=list)
    unchanged: list[int] = field(default_factory=list)
    unfinished: dict[int, str] = field(default_factory=dict)

    def end(self, error: BaseException | None = None) -> None:
        """Record the end of the share.

        Args:
            error: what ended it early, whose ``report`` this becomes; None if nothing did.
        """
        self.complete = error is None and not self.drained and not self.unfinished
        self.close(error, DONE if self.complete else STOPPED_EARLY)

    @property
    def parts_done(self) -> int:
        """The number of its parts that are committed, by itself or another share, or that stay as they are."""
        return len(self.committed) + len(self.done_by_others) + len(self.unchanged)

    def count_part(self, outcome: PartOutcome, report: Report | None) -> None:
        """Count the outcome of a part.

        Args:
            outcome: what became of the part.
            report: the report of the part; None if another machine has it.
        """
        if isinstance(outcome, PartFailed):
            self.unfinished[outcome.part] = outcome.reason
        elif isinstance(outcome, PartDone):
            done = self.committed if outcome.is_ours else self.done_by_others
            (self.unchanged if outcome.is_unchanged else done).append(outcome.part)
        else:
            self.drained = True
        if report is not None:
            self.add(report)
        elif isinstance(outcome, PartDone):
            counts = {name: getattr(outcome, name) for name in ("uploaded", "failed", "surveyed")}
            self.add(Report(**counts, selected=outcome.uploaded + outcome.failed))
            self._groups.rest += outcome.failed

    def add(self, report: Report) -> None:
        """Add the counts of a part.

        Args:
            report: the report of the part, which may be running.
        """
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(report, name))
        for what, count in report.passed_over.items():
            self.passed_over[what] = self.passed_over.get(what, 0) + count
        self.failures += report.failures[: MAX_LISTED_FAILURES - len(self.failures)]
        self._groups.merge(report._groups)
        new = [warning for warning in report.warnings if warning not in self.warnings]
        self.warnings += new[: _MAX_WARNINGS - len(self.warnings)]
        if report.range_low is not None:
            self.range_low, self.range_high = report.range_low, report.range_high

    def summary(self) -> str:
        """Return the report in a few lines, for people; it names the slowest stage."""
        index, count = self.part
        others = f", {len(self.done_by_others):,} by other shares" if self.done_by_others else ""
        others += f", {len(self.unchanged):,} unchanged" if self.unchanged else ""
        is_survey = self.task == "survey"
        verb = "surveyed" if is_survey else "committed"
        done = f"{counted(len(self.committed), 'part')} {verb}{others}, of {self.parts:,} in the plan"
        if self.complete and not self.to_do:
            done = f"nothing left to do, of {counted(self.parts, 'part')} in the plan"
        elif not (self.complete or self.destination or self.parts):
            return f"share {index}/{count}: ended before the plan was read"
        lines = [f"share {index}/{count}: {done}", self._surveyed() if is_survey else Report.summary(self)]
        if self.failed:
            lines.append("the failed maps are in the manifests of their parts; the commit of the plan tells of them")
        if self.unfinished:
            first = [f"part {part}: {reason}" for part, reason in self.unfinished.items()][:_SHOWN]
            more = len(self.unfinished) - len(first)
            rest = f"; {more:,} more" if more else ""
            lines.append(f"not finished: {'; '.join(first)}{rest}; run the share again for them")
        return "\n".join(lines)

    def _surveyed(self) -> str:
        unread = f", of which {self.unsurveyed:,} could not be read" if self.unsurveyed else ""
        return f"{counted(self.surveyed, 'map')} read{unread}, in {self.elapsed_s:.1f} s"


class ShareProgress(Progress):
    """The progress of a share, whose report is a :class:`ShareReport`."""

    def __init__(self, report: ShareReport, statistics: Statistics | None, *, ended: bool = False) -> None:
        super().__init__(report, statistics, None, ended=ended)
        self._share = report

    @property
    def eta_s(self) -> float | None:
        """The estimated number of seconds to the end, from the parts that are done; None while it is unknown."""
        done, left = self._share.parts_done, self._share.to_do - self._share.parts_done
        return self._share.elapsed_s / done * max(0, left) if done else None

    def line(self) -> str:
        """Return the progress as a line of text."""
        if not (self._share.destination or self._share.parts):
            return "reading the plan"
        return f"{self._share.parts_done:,} of {counted(self._share.to_do, 'part')}, {Progress.line(self)}"

    def as_dict(self) -> dict[str, object]:
        """Return the progress as a dict of plain values, for JSON."""
        own = {"parts_done": self._share.parts_done, "parts_to_do": self._share.to_do}
        return Progress.as_dict(self) | own
