"""The event loop that a run gets: uvloop's where it is installed (the `uvloop` extra), else asyncio's own."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

T = TypeVar("T")


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run``, on the fastest loop there is."""
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        return runner.run(main)


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """What makes uvloop's loop, or None for asyncio's own."""
    try:
        import uvloop

        for standard in range(3):
            os.fstat(standard)
    except (ImportError, OSError):
        # Where a standard file is closed, one of ours gets its number, and libuv aborts when it is to close that one.
        return None
    return uvloop.new_event_loop
