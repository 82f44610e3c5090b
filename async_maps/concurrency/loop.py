"""Event loops for synchronous callers: uvloop if it is installed (extra ``uvloop``), else asyncio."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, TypeVar

from anyio.from_thread import start_blocking_portal

from async_maps.machine.shortage import open_files_limit, thread_limit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractContextManager

    from anyio.from_thread import BlockingPortal

T = TypeVar("T")

_ROOM_FOR_UVLOOP = 16
"""Files and threads: libuv starts four threads when it resolves a name."""


def run_blocking(function: Callable[[], Awaitable[T]]) -> T:
    """Call a coroutine function on a new event loop in another thread, and block until it returns.

    Works in scripts, in several threads concurrently, and in a thread with a running event loop (a notebook), which is
    blocked until then. An exception that interrupts the wait (Ctrl-C) cancels the coroutine and waits for its end.
    """
    with open_portal() as portal:
        return portal.call(function)


def open_portal() -> AbstractContextManager[BlockingPortal]:
    """Start an event loop in another thread. Leaving by an exception cancels its tasks and waits for their end."""
    return start_blocking_portal(backend_options={"loop_factory": fastest_loop()}, name="async-maps")


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's loop factory, or None for asyncio's default."""
    if not all(limit is None or limit.left >= _ROOM_FOR_UVLOOP for limit in (open_files_limit(), thread_limit())):
        # Without room for its files and threads, libuv ends the process, and asyncio raises an error.
        return None
    try:
        import uvloop

        for standard in range(3):
            os.fstat(standard)
    except (ImportError, OSError):
        # If stdin, stdout or stderr is closed, a file of ours gets that number; libuv aborts when it closes it.
        return None
    return uvloop.new_event_loop
