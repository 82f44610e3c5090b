"""Event loops for synchronous callers: uvloop's where it is installed (extra ``uvloop``), else asyncio's own."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, TypeVar

from anyio.from_thread import start_blocking_portal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from anyio.from_thread import BlockingPortal

T = TypeVar("T")


def run_blocking(function: Callable[[], Awaitable[T]]) -> T:
    """Call a coroutine function on an event loop of its own and block this thread until it returns.

    Works in a script, in any number of threads at the same time, and in a thread whose own event loop is running (a
    notebook's): that loop stands still meanwhile. An exception that interrupts the wait (Ctrl-C) cancels the coroutine
    and waits until it has ended.
    """
    with open_portal() as portal:
        return portal.call(function)


def open_portal() -> AbstractContextManager[BlockingPortal]:
    """An event loop in a thread of its own. Left by an exception, it cancels what runs there and waits for it."""
    return start_blocking_portal(backend_options={"loop_factory": fastest_loop()}, name="async-maps")


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
