"""Groups failed maps by reason, so that the gallery can show one group. Blocks."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from async_maps.outcomes import Failure
from async_maps.report.failure_groups import MAX_GROUPS, pattern_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from async_maps.outcomes import Stage
    from async_maps.viewer.rows import ViewedRows

_MAX_GROUPED = 50_000
_EXAMPLES = 3


class Group(NamedTuple):
    """Failed maps of one stage whose reasons differ only in names, numbers, paths and quoted values.

    Attributes:
        key: the number that filters name the group by; it is the same after other maps have failed.
        stage: the stage.
        reason: the reason of the first of them.
        names: examples.
        rows: the numbers of their rows.
    """

    key: str
    stage: str
    reason: str
    names: list[str]
    rows: list[int]


class Groups(NamedTuple):
    """The groups of a manifest, the largest first, and the number of failed maps in none of them."""

    groups: list[Group]
    ungrouped: int

    @classmethod
    def of(cls, rows: ViewedRows) -> Groups:
        """Group the failed maps of a manifest; of 50,000, if there are more."""
        with rows.opened() as manifest:
            found = manifest.failed_rows(_MAX_GROUPED)
            failed = manifest.counts().get("failed", 0)
        groups: dict[tuple[str, str], Group] = {}
        for number, name, source, stage, reason in found:
            failure = Failure(name, source, None, cast("Stage", stage or ""), reason or "")
            key = failure.stage, pattern_of(failure)
            group = groups.get(key)
            if group is None:
                if len(groups) >= MAX_GROUPS:
                    continue
                group = groups[key] = Group(_hash(*key), failure.stage, failure.reason, [], [])
            group.rows.append(number)
            if len(group.names) < _EXAMPLES:
                group.names.append(name)
        largest = sorted(groups.values(), key=lambda group: -len(group.rows))
        return cls(largest, failed - sum(len(group.rows) for group in largest))

    def numbers(self, group: str) -> NDArray[np.int64]:
        """Return the numbers of the rows of a group by its key; none if there is no such."""
        return np.array(next((found.rows for found in self.groups if found.key == group), []), np.int64)

    @property
    def failed(self) -> int:
        """The number of failed maps."""
        return self.ungrouped + sum(len(group.rows) for group in self.groups)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "groups": [
                {
                    "key": group.key,
                    "stage": group.stage,
                    "reason": group.reason,
                    "count": len(group.rows),
                    "names": group.names,
                }
                for group in self.groups
            ],
            "ungrouped": self.ungrouped,
        }


def _hash(stage: str, pattern: str) -> str:
    return str(zlib.crc32(f"{stage} {pattern}".encode("utf-8", "surrogatepass")))
