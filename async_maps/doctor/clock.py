"""This machine's clock beside the store's."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

NOTED_S = 60.0
"""Clocks that differ by less are said to be right."""


def ahead_s(date: str, asked_at: datetime) -> float | None:
    """Return how many seconds this machine's clock is ahead of the store's.

    Args:
        date: the Date of an answer that came just now, in whole seconds; it is compared with the middle between request
            and answer.
        asked_at: the time of the request.

    Returns:
        The seconds; None if the answer has no date.
    """
    now = datetime.now(UTC)
    try:
        return (asked_at + (now - asked_at) / 2 - parsedate_to_datetime(date)).total_seconds()
    except (ValueError, TypeError):
        return None


def describe_skew(seconds: float) -> str:
    """Return in words how far this machine's clock is off."""
    return f"{abs(seconds) / 60:.0f} min {'ahead of' if seconds > 0 else 'behind'} the store's"
