"""Reads the objects of a plan a few ahead of their use. Blocks."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

T = TypeVar("T")
R = TypeVar("R")

READERS = 8
_BYTES = 64 * 2**20


def read_ahead(
    items: Iterable[T], read: Callable[[T], R], size: Callable[[T], int]
) -> Generator[tuple[T, R], None, None]:
    """Yield each item and what is read of it, in their order.

    At most 8 others are read ahead, and at most 64 MiB, but always one.

    Args:
        items: what is read, such as the number of a part.
        read: reads one, in a thread.
        size: returns the bytes of one, before it is read.
    """
    waiting: deque[tuple[T, Future[R]]] = deque()
    held = 0
    with ThreadPoolExecutor(READERS, "async-maps-plan") as threads:
        try:
            for item in items:
                while waiting and (len(waiting) > READERS or held + size(item) > _BYTES):
                    first, reading = waiting.popleft()
                    yield first, reading.result()
                    held -= size(first)
                waiting.append((item, threads.submit(read, item)))
                held += size(item)
            while waiting:
                first, reading = waiting.popleft()
                yield first, reading.result()
        finally:
            threads.shutdown(cancel_futures=True)
