"""What has become of the maps of a pipeline: accepted, uploaded, failed, abandoned."""

from __future__ import annotations

from typing import TYPE_CHECKING

from async_maps.outcomes import Failure, Receipt
from async_maps.stages.meters import Statistics, Throughput

if TYPE_CHECKING:
    from collections.abc import Callable

    from async_maps.errors import AsyncMapsError
    from async_maps.outcomes import Outcome
    from async_maps.stages.graph import Stages
    from async_maps.stages.reservation import Reservation

    Settle = Callable[[Outcome | AsyncMapsError], None]
    """What gets the outcome of one map, or the error that ended the pipeline before it."""


class Tally:
    """Counts the maps of a pipeline, and knows those that have no outcome yet.

    Attributes:
        reserved: the rooms of accepted maps that were not submitted to the stages yet.
        submitted: the callbacks of the maps that are in the stages.
        abandoned: the maps that had no outcome when the pipeline was closed.
    """

    def __init__(self) -> None:
        self.reserved: set[Reservation] = set()
        self.submitted: set[Settle] = set()
        self.abandoned = 0
        self._throughput = Throughput()
        self._uploaded = self._failed = self._uploaded_bytes = self._shed = 0
        self._transparent = self._faint = 0

    @property
    def unsettled(self) -> int:
        """The number of accepted maps that have no outcome."""
        return len(self.reserved) + len(self.submitted)

    def withdraw(self, reservation: Reservation) -> None:
        """Give back a reservation if its map was not submitted."""
        if reservation in self.reserved:
            self.reserved.remove(reservation)
            reservation.release()

    def submit(self, settle: Settle, reservation: Reservation | None) -> None:
        """Record that a map goes to the stages."""
        if not self.submitted:
            self._throughput.begin()
        self.submitted.add(settle)
        if reservation is not None:
            self.reserved.discard(reservation)

    def count(self, outcome: Outcome | AsyncMapsError) -> None:
        """Record the outcome of a map."""
        self._throughput.count()
        if isinstance(outcome, Receipt):
            self._uploaded += 1
            self._uploaded_bytes += outcome.size
            self._transparent += outcome.statistics.transparent
            self._faint += outcome.statistics.faint
        elif isinstance(outcome, Failure):
            self._failed += 1

    def shed(self) -> float:
        """Record that a map was refused because the pipeline is full; return the seconds until there may be room."""
        self._shed += 1
        return self._throughput.wait_s(self.unsettled)

    def statistics(self, stages: Stages, *, is_open: bool) -> Statistics:
        """Return the statistics of the stages with these counts."""
        # Another thread may call this, so the three numbers may be of different moments.
        in_flight, pace = self.unsettled - stages.waiting, stages.pace
        return Statistics(
            **stages.statistics(),
            uploaded=self._uploaded,
            failed=self._failed,
            uploaded_bytes=self._uploaded_bytes,
            upload_limit=pace.limit,
            upload_rate=pace.rate,
            retries=pace.retries,
            waiting=stages.waiting,
            in_flight=max(0, in_flight) if is_open else 0,
            shed=self._shed,
            abandoned=self.abandoned,
            transparent=self._transparent,
            faint=self._faint,
            retry_reason=pace.retry_reason,
            waiting_since=stages.waiting_since,
            lanes=stages.lanes,
        )
