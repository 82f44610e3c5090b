"""How long a request may take: no wait for a server is without end, and a slow link is not an end."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from botocore.exceptions import ReadTimeoutError

if TYPE_CHECKING:
    from async_maps.settings import S3Settings

_SLOWEST_BYTES_PER_S = 1024
"""What a server takes or sends for longer than the total must be at least this fast."""


class TooSlowError(ReadTimeoutError):
    """A request was ended because no byte moved, or too few."""

    fmt = "no answer from {endpoint_url}: {reason}"

    def __init__(self, url: str, reason: str) -> None:
        scheme, host, *_ = urlsplit(url)
        super().__init__(endpoint_url=f"{scheme}://{host.rpartition('@')[2]}", reason=reason)


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

    def longest_s(self, size: int) -> float:
        """Return the longest time of a request with that number of bytes."""
        return self.total_s + size / _SLOWEST_BYTES_PER_S
