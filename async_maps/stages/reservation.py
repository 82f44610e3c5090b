"""Room in the stages for arrays that do not exist yet: bytes of the queue of arrays, and a place in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_maps.concurrency.streams import Lease


class Reservation:
    """The leases of one or more arrays, until their maps are submitted.

    Attributes:
        array_bytes: bytes of the queue of arrays.
        place: one of ``chunk_maps`` places; None if another part of the reservation has it.
    """

    __slots__ = ("array_bytes", "place")

    def __init__(self, array_bytes: Lease, place: Lease | None) -> None:
        self.array_bytes = array_bytes
        self.place = place

    def split(self, size: int) -> Reservation:
        """Move bytes to a new reservation, and with the last of them the place."""
        part = Reservation(self.array_bytes.split(size), None)
        if not self.array_bytes.size:
            part.place, self.place = self.place, None
        return part

    def free_place(self) -> None:
        """Give the place back."""
        place, self.place = self.place, None
        if place is not None:
            place.release()

    def release(self) -> None:
        """Give everything back; harmless if it was given back before."""
        self.array_bytes.release()
        self.free_place()
