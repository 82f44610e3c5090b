"""Bounds in bytes, and the quick way through a stream.

The bounded streams themselves are anyio's memory object streams, which count items.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Generic, TypeVar

from anyio import BrokenResourceError, EndOfStream, Event, WouldBlock

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

T = TypeVar("T")


async def send(stream: MemoryObjectSendStream[T], item: T) -> None:
    """Send an item, without a turn of the event loop where there is room for it."""
    try:
        stream.send_nowait(item)
    except WouldBlock:
        await stream.send(item)


async def receive(stream: MemoryObjectReceiveStream[T]) -> T | None:
    """The next item of a stream, without a turn of the event loop where it is there; None at the stream's end.

    For a stage that awaits something for each item: one that does not would never let others have their turn.
    """
    try:
        try:
            return stream.receive_nowait()
        except WouldBlock:
            return await stream.receive()
    except EndOfStream:
        return None


class WaitingLine(Generic[T]):
    """Hands out shares of something that may not be free yet, first come, first served. For one event loop.

    ``take`` gives a share of a size, or None while it cannot; ``give_back`` takes back one whose receiver was cancelled
    at the moment in which it was handed out.
    """

    def __init__(self, take: Callable[[int], T | None], give_back: Callable[[T], None]) -> None:
        self._take = take
        self._give_back = give_back
        self._waiting: deque[_Place[T]] = deque()
        self._closed = False

    async def wait(self, size: int) -> T:
        """Wait for a share of that size; BrokenResourceError if the line is closed. Cancelled, nothing was taken."""
        if self._closed:
            raise BrokenResourceError
        if (share := self.take_nowait(size)) is not None:
            return share
        place: _Place[T] = _Place(size)
        self._waiting.append(place)
        try:
            await place.served.wait()
        except BaseException:
            if place.share is None:
                with suppress(ValueError):  # closed at the same moment
                    self._waiting.remove(place)
                self.serve()
            else:
                self._give_back(place.share)
            raise
        if place.share is None:
            raise BrokenResourceError
        return place.share

    def take_nowait(self, size: int) -> T | None:
        """A share of that size, or None where one would have to wait for it: also if only because others do."""
        return None if self._closed or self._waiting else self._take(size)

    @property
    def length(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def serve(self) -> None:
        """Something was given back: serve those at the head of the line."""
        while self._waiting and (share := self._take(self._waiting[0].size)) is not None:
            place = self._waiting.popleft()
            place.share = share
            place.served.set()

    def close(self) -> None:
        """Nothing will be given back any more: end every wait with a BrokenResourceError."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().served.set()


class _Place(Generic[T]):
    def __init__(self, size: int) -> None:
        self.size = size
        self.served = Event()
        self.share: T | None = None


class ByteBudget:
    """A limit on the bytes that are held at the same time.

    A lease larger than the whole budget is given when nothing else is held: one huge item runs alone instead of never.
    So at most ``max(limit, the largest single lease)`` bytes are held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._line: WaitingLine[Lease] = WaitingLine(self._lease, Lease.release)

    async def acquire(self, size: int) -> Lease:
        """Wait until ``size`` bytes are free and take them. Cancelled, it has taken nothing."""
        return await self._line.wait(size)

    def acquire_nowait(self, size: int) -> Lease | None:
        """Take ``size`` bytes if they are free and nobody waits for any; else None."""
        return self._line.take_nowait(size)

    @property
    def waiting(self) -> int:
        """How many wait for a lease."""
        return self._line.length

    def close(self) -> None:
        """End every wait with a BrokenResourceError."""
        self._line.close()

    def _lease(self, size: int) -> Lease | None:
        if self.held and self.held + size > self.limit:
            return None
        self.held += size
        return Lease(self, size)

    def _give_back(self, size: int) -> None:
        self.held -= size
        self._line.serve()


class Lease:
    """Bytes taken from a budget. Giving them back twice is harmless: after a cancellation, two places may do it."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: ByteBudget, size: int) -> None:
        self._budget = budget
        self._size = size

    def resize(self, size: int) -> None:
        """Count as many bytes as it has turned out to be, be it more than are free."""
        change, self._size = self._size - size, size
        self._budget._give_back(change)  # the other half of this pair

    def release(self) -> None:
        """Give the bytes back."""
        size, self._size = self._size, 0
        if size:
            self._budget._give_back(size)  # the other half of this pair
