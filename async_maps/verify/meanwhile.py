"""What is written while a verification works is not judged: its row may be written a moment later, or by another run.

Times are those of the store's clock, in seconds since 1970.
"""

from __future__ import annotations

from collections import Counter
from time import time as now
from typing import TYPE_CHECKING, NamedTuple

from async_maps.verify.comparison import Difference

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from async_maps.manifest.lock import Holder
    from async_maps.verify.comparison import Comparison

SLACK_S = 60.0
"""The clocks of the run's machine and of this one may differ by this time, and a run may take it to write a row."""
_OTHERS_S = 60.0
"""An object without a row that is younger shows that another run, with another manifest, writes there now."""
_ROUNDING_S = 2.0
"""A clock's offset is known with this error, because the store tells its time in whole seconds."""


class Window(NamedTuple):
    """The changes of objects that are not judged are later than a start, and not later than ``until``.

    ``rows`` is the start for the objects of rows, ``others`` that for objects without a row. ``fresh`` is the start for
    those that show another run. A change in the future is judged: the clock that it comes from is wrong.
    """

    rows: float
    others: float
    until: float
    fresh: float

    @classmethod
    def of(cls, began_at: float, offset_s: float, holder: Holder | None) -> Window:
        """Return the window of a verification.

        Args:
            began_at: when it began, by this machine's clock.
            offset_s: how many seconds the store's clock is ahead.
            holder: the run that writes the manifest, if there is one.
        """
        began_at += offset_s + (_ROUNDING_S if offset_s else 0)
        until, fresh = now() + offset_s + SLACK_S, began_at - _OTHERS_S
        if holder is None:
            return cls(began_at, began_at, until, fresh)
        rows = began_at - SLACK_S
        return cls(rows, min(rows, _seconds(holder.claims_since) + offset_s - SLACK_S), until, fresh)


class Settled(NamedTuple):
    """The objects without a row that are not foreign.

    Attributes:
        sent: the number of objects of an interrupted run.
        of_failed: the number of objects of maps that fail now.
        is_shared: whether another run writes there. Then no object is foreign, because it may be of that run.
    """

    sent: int
    of_failed: int
    is_shared: bool


def settle(comparison: Comparison, window: Window) -> Settled:
    """Leave out what was changed in the window and what an earlier run has sent; name the foreign objects. Blocks."""
    comparison.leave_changed(window.rows, window.until)
    count, is_shared = Counter[bool](), False
    for found in _strangers(comparison):
        # Other files, such as maps and manifests, may be kept in the same folder.
        pngs = [(locator, size, time or 0.0) for locator, size, time in found if locator.lower().endswith(".png")]
        sent = comparison.sent(locator for locator, *_ in pngs)
        new = {locator for locator, _, time in pngs if window.others < time <= window.until}
        is_shared |= any(window.fresh < time <= window.until for locator, _, time in pngs if locator not in sent)
        comparison.leave(new)
        count.update(is_failed for locator, is_failed in sent.items() if locator not in new)
        comparison.note(
            Difference("foreign", locator, "", "no object", f"{size:,} bytes")
            for locator, size, _ in pngs
            if locator not in new and locator not in sent
        )
    if is_shared:
        comparison.leave_foreign()
    return Settled(count[False], count[True], is_shared)


def _strangers(comparison: Comparison) -> Iterator[list[tuple[str, int, float | None]]]:
    after = ""
    while found := comparison.foreign(after):
        yield found
        after = found[-1][0]


def _seconds(since: datetime | None) -> float:
    return 0.0 if since is None else since.timestamp()
