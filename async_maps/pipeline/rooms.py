"""Room for single maps: taken by the call itself, or before the map is computed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from anyio import BrokenResourceError

from async_maps.concurrency.tasks import see_error
from async_maps.errors import PipelineClosedError, PipelineFullError, SettingsError
from async_maps.sources.arrays import size_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from async_maps.outcomes import Receipt
    from async_maps.pipeline.intake import Intake
    from async_maps.pipeline.lifecycle import Lifecycle
    from async_maps.pipeline.tally import Tally
    from async_maps.stages.reservation import Reservation


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


class Rooms:
    """Takes the room of maps before they are put."""

    def __init__(self, lifecycle: Lifecycle, intake: Intake, tally: Tally) -> None:
        self._lifecycle = lifecycle
        self._intake = intake
        self._tally = tally

    def put_nowait(self, name: str, activation_map: Any) -> asyncio.Task[Receipt]:
        """Take room if there is some, and put a map into it."""
        reservation = self._intake.check_single().reserve_nowait(size_of(activation_map))
        if isinstance(reservation, str):
            raise self._full(reservation)
        self._tally.reserved.add(reservation)
        task = asyncio.create_task(self._intake.put(name, activation_map, reservation))

        def end(_: object) -> None:
            self._lifecycle.unfinished.discard(task)
            # It is still there if the task was cancelled before it began.
            self._tally.withdraw(reservation)
            if self._lifecycle.ended_early:
                # One error is reported for all maps together.
                see_error(task)

        self._lifecycle.unfinished.add(task)
        task.add_done_callback(end)
        return task

    @asynccontextmanager
    async def reserve(self, nbytes: int, timeout_s: float | None) -> AsyncIterator[Room]:
        """Wait for room, and give back at the end of the block what was not used."""
        stages = self._intake.check_single()
        if not nbytes >= 0 or not (timeout_s is None or timeout_s >= 0):  # also refuses NaN
            raise SettingsError(f"expected nbytes and timeout_s of 0 or more, found {nbytes!r} and {timeout_s!r}")
        try:
            async with asyncio.timeout(timeout_s):
                reservation = await stages.reserve(nbytes)
        except BrokenResourceError:
            raise self._lifecycle.ended() from None
        except TimeoutError:
            raise self._full(f"there was no room for {nbytes:,} bytes in {timeout_s:g} s") from None
        try:
            self._intake.refuse_if_leaving()  # since the wait began
        except PipelineClosedError:
            reservation.release()
            raise
        room, left = Room(reservation, self._put_reserved), asyncio.get_running_loop().create_future()
        self._lifecycle.unfinished.add(left)
        try:
            yield room
        finally:
            room._close()
            left.set_result(None)
            self._lifecycle.unfinished.discard(left)

    async def _put_reserved(self, name: str, activation_map: Any, reservation: Reservation) -> Receipt:
        self._tally.reserved.add(reservation)
        putting = self._intake.put(name, activation_map, reservation)
        del activation_map
        try:
            return await putting
        finally:
            self._tally.withdraw(reservation)

    def _full(self, what: str) -> PipelineFullError:
        wait_s = self._tally.shed()
        return PipelineFullError(f"the pipeline is full: {what}; try again in {wait_s:.1f} s", retry_after_s=wait_s)
