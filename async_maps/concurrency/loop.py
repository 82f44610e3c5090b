"""Event loops for synchronous callers: uvloop if it is installed (extra ``uvloop``), else asyncio."""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from contextvars import Context
from threading import Thread
from typing import TYPE_CHECKING, TypeVar

from anyio import run
from anyio.from_thread import BlockingPortal

from async_maps.machine.shortage import open_files_limit, thread_limit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

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


@contextmanager
def open_portal() -> Iterator[BlockingPortal]:
    """Start an event loop in another thread. Leaving by an exception cancels its tasks and waits for their end."""
    # Not anyio's start_blocking_portal: Ctrl-C while the loop starts would wait for ever.
    started: Future[BlockingPortal] = Future()
    options = {"loop_factory": fastest_loop()}

    async def serve() -> None:
        async with BlockingPortal() as portal:
            started.set_result(portal)
            await portal.sleep_until_stopped()

    def run_loop() -> None:
        try:
            run(serve, backend_options=options)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    # Python 3.14 would run it in the context of the caller.
    thread = Thread(target=Context().run, args=(run_loop,), daemon=True, name="async-maps")
    failed = True
    try:
        thread.start()
        yield started.result()
        failed = False
    finally:
        if thread.ident is not None:
            try:
                with suppress(RuntimeError):  # the loop has not started, or has ended
                    portal = started.result()
                    portal.call(portal.stop, failed)
            finally:
                thread.join()


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
