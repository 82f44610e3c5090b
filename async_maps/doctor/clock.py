"""This machine's clock beside the store's."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from async_maps.doctor.finding import Finding

if TYPE_CHECKING:
    from collections.abc import Callable

_NOTED_S = 60.0


def compare_clocks(
    date: str, asked_at: datetime, advice: str, limits: Callable[[float], str] = lambda _: ""
) -> Finding:
    """Return whether this machine's clock is right.

    Args:
        date: the Date of an answer that came just now, in whole seconds; it is compared with the middle between request
            and answer.
        asked_at: the time of the request.
        advice: what to do if it is wrong.
        limits: returns what the store does about a clock that is so many seconds ahead.
    """
    now = datetime.now(UTC)
    try:
        ahead_s = (asked_at + (now - asked_at) / 2 - parsedate_to_datetime(date)).total_seconds()
    except (ValueError, TypeError):
        return Finding("clock", "unknown", "the store's answers have no date", "")
    if abs(ahead_s) < _NOTED_S:
        return Finding("clock", "ok", "within a minute of the store's", "")
    where = "ahead of" if ahead_s > 0 else "behind"
    return Finding("clock", "warning", f"{abs(ahead_s) / 60:.0f} min {where} the store's{limits(ahead_s)}", advice)
