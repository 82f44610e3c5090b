"""The shared memory through which worker processes return pixels. Managed on the event loop; the workers map it.

It is one anonymous file in memory, whose descriptor is sent to the workers. It needs no /dev/shm: nothing is left there
after a crash, and the small /dev/shm of a container is no limit.
"""

from __future__ import annotations

import errno
import mmap
import os
from typing import TYPE_CHECKING

import numpy as np

from async_maps.concurrency.launch import anonymous_file
from async_maps.concurrency.streams import WaitingLine
from async_maps.errors import SettingsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PAGE = mmap.ALLOCATIONGRANULARITY
_NOTHING = np.empty(0, np.uint8)


def map_memory(descriptor: int, size: int) -> NDArray[np.uint8]:
    """Map the first ``size`` bytes of an arena's file; they are unmapped with their last view."""
    return np.frombuffer(mmap.mmap(descriptor, size), np.uint8)


class Block:
    """A contiguous range of an arena, shared by the bitmaps of a chunk; ``start`` is its offset in the file."""

    memory: NDArray[np.uint8]
    """(size,) uint8."""

    def __init__(self, arena: Arena, start: int, size: int) -> None:
        self.start = start
        self.size = size
        self._arena = arena
        self._holders = 1

    def hold(self) -> None:
        """Add a holder, which must call :meth:`release` once."""
        self._holders += 1

    def release(self) -> None:
        """Remove a holder; the last one gives the block back, and its views must not be used afterwards."""
        self._holders -= 1
        if self._holders == 0:
            # A traceback may still refer to this block: do not keep the memory mapped.
            self.memory = _NOTHING
            self._arena.give_back(self)


class Arena:
    """Shared memory that is handed out in blocks; a request for more than is free waits.

    It has ``size`` bytes. For a larger block the file grows, without waiting for other blocks. It shrinks when nothing
    is held and a smaller block is requested, so not for each of several large blocks.

    Raises SettingsError if the system does not provide that much memory.

    Attributes:
        size: the bytes for blocks that are not too large for it.
        room: the bytes that the file has now, ``size`` or more.
        held: the bytes of all blocks.
    """

    def __init__(self, size: int) -> None:
        self.size = self.room = _round_up(size)
        self.held = 0
        self.descriptor = anonymous_file()
        try:
            os.ftruncate(self.descriptor, self.size)
            self._memory = map_memory(self.descriptor, self.size)
        except (OSError, OverflowError) as error:
            os.close(self.descriptor)
            reason = error.strerror if isinstance(error, OSError) else error
            raise SettingsError(
                f"queue_bytes: the system cannot provide {size:,} bytes of shared memory: {reason}"
            ) from error
        self._free = [(0, self.size)]
        self._line: WaitingLine[Block] = WaitingLine(self._carve, self.give_back)

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)
        self._memory = _NOTHING

    async def take(self, size: int, spare: int = 0) -> Block:
        """Wait for a block, and return it with one holder; if the wait is cancelled, nothing is taken.

        Args:
            size: the bytes that the block has at least.
            spare: the bytes for which there is room beside the block, so that the next one need not wait for its end.

        Raises:
            OSError: they are more than the arena has, and the system does not provide that much memory.
        """
        size = _round_up(max(size, 1))
        self._fit(size + _round_up(spare))
        return await self._line.wait(size)

    def give_back(self, block: Block) -> None:
        """Take a block back; called by :meth:`Block.release`."""
        self.held -= block.size
        self._free = _merge([*self._free, (block.start, block.size)])
        self._line.serve()

    def _fit(self, wanted: int) -> None:
        """Grow the file to the bytes that are wanted, or shrink it to them; but a waiting block may need it all."""
        room = max(self.size, wanted)
        if room < self.room and not self.held and not self._line.length:
            os.ftruncate(self.descriptor, room)
            self.room, self._free = room, [(0, room)]
        elif room > self.room:
            try:
                os.ftruncate(self.descriptor, room)
                self._memory = map_memory(self.descriptor, room)
            except (OSError, OverflowError) as error:
                os.ftruncate(self.descriptor, self.room)
                raise OSError(errno.ENOMEM, f"{wanted:,} bytes of shared memory are not available") from error
            self._free = _merge([*self._free, (self.room, room - self.room)])
            self.room = room
            self._line.serve()

    def _carve(self, size: int) -> Block | None:
        """Take the first free range that is large enough, so that the same memory is reused."""
        for index, (start, length) in enumerate(self._free):
            if length >= size:
                self._free[index : index + 1] = [(start + size, length - size)] if length > size else []
                self.held += size
                block = Block(self, start, size)
                block.memory = self._memory[start : start + size]
                return block
        return None


def _round_up(size: int) -> int:
    return -(-size // _PAGE) * _PAGE


def _merge(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for start, length in sorted(pieces):
        if merged and sum(merged[-1]) == start:
            merged[-1] = (merged[-1][0], merged[-1][1] + length)
        else:
            merged.append((start, length))
    return merged
