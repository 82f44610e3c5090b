"""How long a request may take: no wait for a server is without end, and a slow link is not an end."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from botocore.exceptions import ReadTimeoutError

if TYPE_CHECKING:
    from async_maps.settings import S3Settings

_SLOWEST_BYTES_PER_S = 1024
"""What a server takes or sends for longer than the total must be at least this fast."""


class TooSlowError(ReadTimeoutError):
    """A request was ended because no byte moved, or too few."""

    fmt = "{reason}"

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)


class TimeLimits(NamedTuple):
    """The limits of a request.

    Attributes:
        silence_s: the longest time in which no byte moves.
        total_s: the longest time of a small request, however its bytes move.
    """

    silence_s: float
    total_s: float

    @classmethod
    def of(cls, settings: S3Settings) -> TimeLimits:
        """Return the limits of a client with these settings."""
        return cls(settings.read_timeout_s, max(settings.give_up_s, settings.read_timeout_s))

    def silent(self) -> TooSlowError:
        """Return the error after the longest silence."""
        return TooSlowError(f"no byte has moved for {self.silence_s:g} s (s3.read_timeout_s)")

    def longest_s(self, size: int) -> float:
        """Return the longest time of a request with that number of bytes."""
        return self.total_s + size / _SLOWEST_BYTES_PER_S


def too_few(seconds: float) -> TooSlowError:
    """Return the error of a request whose bytes moved too slowly for that time."""
    return TooSlowError(f"too few bytes have moved in {seconds:,.0f} s")
