"""Room in the pipeline for arrays that do not exist yet: bytes of the queue of arrays, and a place in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from async_maps.errors import PipelineClosedError, SettingsError
from async_maps.sources.arrays import size_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from async_maps.concurrency.streams import Lease
    from async_maps.outcomes import Receipt


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


class Room:
    """Room for maps, taken before they are computed.

    :meth:`Pipeline.reserve` makes it. Use it inside that block.

    Args:
        reservation: the room.
        put: puts a map with a part of the reservation.
    """

    def __init__(self, reservation: Reservation, put: Callable[[str, Any, Reservation], Awaitable[Receipt]]) -> None:
        self._reservation: Reservation | None = reservation
        self._put = put

    @property
    def nbytes(self) -> int:
        """The bytes that are left for further maps."""
        return 0 if self._reservation is None else self._reservation.array_bytes.size

    async def put(self, name: str, activation_map: Any) -> Receipt:
        """Put a map into the room, as :meth:`Pipeline.put` does, without waiting for room.

        Several maps may be put, also concurrently; together they have at most the reserved bytes.

        Args:
            name: as for :meth:`Pipeline.put`.
            activation_map: as for :meth:`Pipeline.put`. It takes its ``nbytes`` from the room.

        Returns:
            The receipt.

        Raises:
            SettingsError: the array is larger than what is left of the room.
            PipelineClosedError: the block of the room was left.
            AsyncMapsError: as for :meth:`Pipeline.put`.
        """
        if self._reservation is None:
            raise PipelineClosedError(f"map {name}: its room was given back; put it inside 'async with reserve(...)'")
        size = size_of(activation_map)
        if size > self.nbytes:
            raise SettingsError(
                f"map {name} has {size:,} bytes, but {self.nbytes:,} are left of its room: "
                "reserve the nbytes of all arrays that you put into it"
            )
        putting = self._put(name, activation_map, self._reservation.split(size))
        # Only the coroutine must hold the array: it releases it as soon as possible.
        del activation_map
        return await putting

    def _close(self) -> None:
        """Give back what was not used."""
        reservation, self._reservation = self._reservation, None
        if reservation is not None:
            reservation.release()
