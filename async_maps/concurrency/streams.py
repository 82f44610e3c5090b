"""Byte budgets, and fast sends and receives on anyio's memory object streams, which are bounded in items only."""

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
    """Send an item; if there is room, without a switch to another task."""
    try:
        stream.send_nowait(item)
    except WouldBlock:
        await stream.send(item)


async def receive(stream: MemoryObjectReceiveStream[T]) -> T | None:
    """Return the next item of a stream, or None at its end; if an item is ready, without a switch to another task.

    The caller must await something else for each item, or other tasks never run.
    """
    try:
        try:
            return stream.receive_nowait()
        except WouldBlock:
            return await stream.receive()
    except EndOfStream:
        return None


class WaitingLine(Generic[T]):
    """A first-come, first-served queue for shares of a resource. For one event loop.

    ``take`` returns a share of a size, or None if it is not available now. ``give_back`` takes back a share whose
    receiver was cancelled after the share was assigned.
    """

    def __init__(self, take: Callable[[int], T | None], give_back: Callable[[T], None]) -> None:
        self._take = take
        self._give_back = give_back
        self._waiting: deque[_Place[T]] = deque()
        self._closed = False

    async def wait(self, size: int) -> T:
        """Wait for a share of that size, or raise BrokenResourceError; if the wait is cancelled, nothing is taken."""
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
        """Return a share of that size, or None if it is not available or others are waiting."""
        return None if self._closed or self._waiting else self._take(size)

    @property
    def length(self) -> int:
        """The number of waiting tasks."""
        return len(self._waiting)

    def serve(self) -> None:
        """Serve the head of the line; call it after something was given back."""
        while self._waiting and (share := self._take(self._waiting[0].size)) is not None:
            place = self._waiting.popleft()
            place.share = share
            place.served.set()

    def close(self) -> None:
        """End every wait, now and later, with a BrokenResourceError."""
        self._closed = True
        while self._waiting:
            self._waiting.popleft().served.set()


class _Place(Generic[T]):
    def __init__(self, size: int) -> None:
        self.size = size
        self.served = Event()
        self.share: T | None = None


class ByteBudget:
    """A limit on the bytes that are held concurrently.

    A lease larger than the whole budget is granted when nothing else is held, so that a huge item runs alone. At most
    ``max(limit, largest lease)`` bytes are held.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._line: WaitingLine[Lease] = WaitingLine(self._lease, Lease.release)

    async def acquire(self, size: int) -> Lease:
        """Wait until ``size`` bytes are free and take them; if the wait is cancelled, nothing is taken."""
        return await self._line.wait(size)

    def acquire_nowait(self, size: int) -> Lease | None:
        """Take ``size`` bytes if they are free and no task is waiting; else return None."""
        return self._line.take_nowait(size)

    @property
    def waiting(self) -> int:
        """The number of tasks that wait for a lease."""
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
    """Bytes taken from a budget. Releasing them twice is harmless: after a cancellation, two places may do it."""

    __slots__ = ("_budget", "_size")

    def __init__(self, budget: ByteBudget, size: int) -> None:
        self._budget = budget
        self._size = size

    @property
    def size(self) -> int:
        """The number of bytes."""
        return self._size

    def split(self, size: int) -> Lease:
        """Move bytes to a new lease."""
        self._size -= size
        return Lease(self._budget, size)

    def resize(self, size: int) -> None:
        """Change the size to the actual one, even if that exceeds the budget."""
        change, self._size = self._size - size, size
        self._budget._give_back(change)

    def release(self) -> None:
        """Give the bytes back."""
        size, self._size = self._size, 0
        if size:
            self._budget._give_back(size)
