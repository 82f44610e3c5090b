"""What a look at all locators ends with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from async_maps.verify.comparison import Difference, Kind

MAX_LISTED_DIFFERENCES = 1000
"""The maximum number of differences, and of repaired overlays, that a verification lists."""


@dataclass(slots=True)
class Verification:
    """What was found.

    Attributes:
        place: the manifest or the table.
        folders: what was listed.
        locators: how many objects should be there.
        right: how many of them are, and are as they should be.
        listed: objects in the listings.
        read: objects that were read, with ``deep``.
        read_bytes: their bytes.
        failed: maps that have no overlay, as they failed.
        differences: how many there are of each kind (:data:`~async_maps.verify.comparison.Kind`).
        repaired: overlays that were uploaded again.
        deleted: foreign objects that were deleted.
        elapsed_s: seconds it took.
        doing: what it is doing at this moment; empty at the end.
        advice: what is to be done about what differs.
        first: the first differences.
        first_repaired: the locators of the first repaired overlays.
    """

    place: str = ""
    folders: list[str] = field(default_factory=list)
    locators: int = 0
    right: int = 0
    listed: int = 0
    read: int = 0
    read_bytes: int = 0
    failed: int = 0
    differences: dict[Kind, int] = field(default_factory=dict)
    repaired: int = 0
    deleted: int = 0
    elapsed_s: float = 0.0
    doing: str = ""
    advice: list[str] = field(default_factory=list)
    first: list[Difference] = field(default_factory=list)
    first_repaired: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing differs."""
        return not self.differences

    def copy(self) -> Verification:
        """Return the verification of this moment."""
        return replace(
            self,
            folders=self.folders[:],
            differences=dict(self.differences),
            advice=self.advice[:],
            first=self.first[:],
            first_repaired=self.first_repaired[:],
        )

    def line(self) -> str:
        """Return the progress as a line of text."""
        return (
            f"{self.doing}: {self.locators:,} locators, {self.listed:,} objects listed, "
            f"{self.read:,} read ({self.read_bytes / 1e6:,.1f} MB), {sum(self.differences.values()):,} differences, "
            f"{self.repaired:,} repaired"
        )

    def summary(self) -> str:
        """Return the verification in a few lines, for people."""
        how = f"{self.read:,} objects read ({self.read_bytes / 1e6:,.1f} MB)" if self.read else "by listing"
        lines = [
            f"{self.right:,} of {self.locators:,} locators are right, {how}",
            f"{self.elapsed_s:.1f} s, {self.listed:,} objects listed in {', '.join(self.folders) or 'no folder'}",
        ]
        if self.repaired or self.deleted:
            lines.append(f"{self.repaired:,} repaired, {self.deleted:,} foreign deleted")
        if self.differences:
            lines.append("different: " + ", ".join(f"{count:,} {kind}" for kind, count in self.differences.items()))
        if self.failed:
            lines.append(f"{self.failed:,} maps failed in their run, and have no locator")
        return "\n".join([*lines, *self.advice])

    def as_dict(self) -> dict[str, Any]:
        """Return the verification for machines: every attribute, plain values only."""
        return asdict(self) | {"first": [difference._asdict() for difference in self.first]}
