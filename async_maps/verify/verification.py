"""The result of a verification or repair."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from async_maps.report import counted
from async_maps.report.ending import DONE, SOME_FAILED, Ending

if TYPE_CHECKING:
    from async_maps.verify.comparison import Difference, Kind

MAX_LISTED_DIFFERENCES = 1000
"""The maximum number of differences, and of repaired overlays, that a verification lists."""


@dataclass(slots=True)
class Verification(Ending):
    """The result of a verification or repair.

    Attributes:
        settings: the settings as plain values; empty if they are not valid.
        started_at: the time of the start, in UTC.
        ended_at: the time of the end, in UTC; None before it.
        complete: whether all objects were compared.
        error: the error that ended it early, as its ``kind`` and its ``message``; else None.
        exit_code: the exit code of the command with this ending; None before the end.
        place: the manifest, the table or the plan.
        folders: the folders that were listed.
        locators: the number of expected objects.
        right: the number of expected objects that exist and do not differ.
        listed: the number of objects in the listings.
        deep: whether every object was read and decoded.
        read: the number of objects that were read: all with ``deep``, else files only.
        read_bytes: the bytes that were read.
        failed: the number of maps that failed in their run, and have no overlay.
        running: the process, host and start of the run that was writing the manifest; None if there was none. Then the
            result holds for that moment.
        unsettled: the number of objects that were written meanwhile, or since that run began, and are not judged.
        shared: whether another run or program has stored objects there in the minute before the verification, or since,
            that the manifest does not list. Then no object is called foreign.
        unrecorded: the number of objects without a row that an interrupted run may have stored. They are no difference.
        of_failed: the number of objects that were stored for maps that fail now. They are no difference.
        differences: the number of objects by the kind of difference (:data:`~async_maps.verify.comparison.Kind`).
        repaired: the number of overlays that were uploaded again.
        deleted: the number of foreign objects that were deleted.
        elapsed_s: the duration in seconds.
        doing: the current step; empty at the end.
        advice: sentences that say how to fix the differences.
        first: the first differences.
        first_repaired: the locators of the first repaired overlays.
    """

    place: str = ""
    folders: list[str] = field(default_factory=list)
    locators: int = 0
    right: int = 0
    listed: int = 0
    deep: bool = False
    read: int = 0
    read_bytes: int = 0
    failed: int = 0
    running: str | None = None
    unsettled: int = 0
    shared: bool = False
    unrecorded: int = 0
    of_failed: int = 0
    differences: dict[Kind, int] = field(default_factory=dict)
    repaired: int = 0
    deleted: int = 0
    doing: str = ""
    advice: list[str] = field(default_factory=list)
    first: list[Difference] = field(default_factory=list)
    first_repaired: list[str] = field(default_factory=list)
    _newer_foreign: int = field(default=0, init=False, repr=False, compare=False)
    """The number of foreign objects that are newer than the start of the manifest's last run."""
    _may_be_empty: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether no overlay is expected: a plan with nothing new has no parts."""

    @property
    def is_clean(self) -> bool:
        """Whether there were overlays to verify, and nothing differs."""
        return (self.locators > 0 or self._may_be_empty) and not self.differences

    @property
    def has_reached_store(self) -> bool:
        """Whether the store has listed or sent objects."""
        return self.listed > 0 or self.read > 0

    def end(self, error: BaseException | None = None) -> None:
        """Record the end of the verification.

        Args:
            error: what ended it early, whose ``report`` this becomes; None if nothing did.
        """
        self.doing = ""
        self.complete = error is None
        self.close(error, DONE if self.is_clean else SOME_FAILED)

    def copy(self) -> Verification:
        """Return a copy of the current state."""
        copied = replace(
            self,
            folders=self.folders[:],
            differences=dict(self.differences),
            advice=self.advice[:],
            first=self.first[:],
            first_repaired=self.first_repaired[:],
        )
        copied._began_at, copied._newer_foreign = self._began_at, self._newer_foreign
        copied._may_be_empty = self._may_be_empty
        return copied

    def line(self) -> str:
        """Return the progress as a line of text."""
        doing = f"{self.doing}: " if self.doing else ""
        return (
            f"{doing}{counted(self.locators, 'locator')}, {counted(self.listed, 'object')} listed, "
            f"{self.read:,} read ({self.read_bytes / 1e6:,.1f} MB), "
            f"{counted(sum(self.differences.values()), 'difference')}, {self.repaired:,} repaired"
        )

    def summary(self) -> str:
        """Return the verification in a few lines, for people."""
        size = f"({self.read_bytes / 1e6:,.1f} MB)"
        how = f"{counted(self.read, 'object')} read {size}" if self.read else "by listing"
        if self.read and not self.deep:
            how = f"by listing, and the CRC32 of {counted(self.read, 'file')} {size}"
        are = "is" if self.locators == 1 else "are"
        listed = f", {counted(self.listed, 'object')} listed in {', '.join(self.folders)}" if self.folders else ""
        lines = [
            f"{self.right:,} of {counted(self.locators, 'locator')} {are} right, {how}",
            f"{self.elapsed_s:.1f} s{listed}",
        ]
        if self.repaired or self.deleted:
            lines.append(f"{self.repaired:,} repaired, {self.deleted:,} foreign deleted")
        if self.differences:
            lines.append("different: " + ", ".join(f"{count:,} {kind}" for kind, count in self.differences.items()))
        if self.running is not None:
            which = f" ({self.running})" if self.running else ""
            lines.append(f"a run is writing the manifest{which}: this result holds for the moment")
        if self.unsettled:
            objects = "1 object is" if self.unsettled == 1 else f"{self.unsettled:,} objects are"
            why = "newer than this verification"
            if self.running is not None:
                why = "newer than the start of that run, or were replaced since,"
            if self.shared:
                why = f"{why if self.running else 'new'} or may be of another run that stores objects there,"
            lines.append(f"{objects} {why} and not judged")
        if self.unrecorded:
            objects = "1 overlay is" if self.unrecorded == 1 else f"{self.unrecorded:,} overlays are"
            lines.append(f"{objects} not recorded yet, because a run was interrupted")
        if self.of_failed:
            objects = "1 object is" if self.of_failed == 1 else f"{self.of_failed:,} objects are"
            lines.append(
                f"{objects} the last overlay of a map that fails now: see its failed row; without one, its file is gone"
            )
        if self.failed:
            maps = "1 map failed in its run and has" if self.failed == 1 else f"{self.failed:,} maps failed and have"
            lines.append(f"{maps} no locator")
        if self.complete and not self.locators:
            lines[0] = f"nothing to verify: {self.place} lists no overlay"
        return "\n".join([*lines, *self.advice])

    def as_dict(self) -> dict[str, Any]:
        """Return the verification as a dict of plain values, for JSON, as ``report.schema.json`` describes it."""
        first = [difference._asdict() for difference in self.first]
        return self.with_ending("verify", asdict(self) | {"first": first})
