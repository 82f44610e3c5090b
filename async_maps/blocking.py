"""Synchronous functions made of coroutines: one scheme for scripts, threads and notebooks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable
from functools import partial, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from async_maps.concurrency.loop import run_blocking
from async_maps.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

P = ParamSpec("P")
T = TypeVar("T")


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make the synchronous twin of a coroutine function, whose name is the coroutine's without its prefix ``a``.

    The twin runs the coroutine on an event loop in a thread of its own and blocks until it returns. So it works in a
    script, in several threads at the same time, and where an event loop runs in the calling thread (a notebook's),
    which stands still meanwhile. Ctrl-C cancels the coroutine and waits until it has ended.
    """
    name = function.__name__.removeprefix("a")
    summary, _, rest = (inspect.getdoc(function) or "").partition("\n")

    @wraps(function)
    def twin(*arguments: P.args, **keywords: P.kwargs) -> T:
        for argument in (*arguments, *keywords.values()):
            refuse_bound(argument, f"await am.a{name}(...)")
        return run_blocking(partial(function, *arguments, **keywords))

    twin.__name__ = twin.__qualname__ = name
    twin.__doc__ = f"{summary}\n\nBlocks until done: :func:`a{name}` for scripts, threads and notebooks.\n{rest}"
    return twin


def refuse_bound(source: object, instead: str) -> None:
    """Refuse an async iterable where it may wait for the event loop of this thread, which the call is about to block.

    The error names the call to make ``instead``.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if isinstance(source, AsyncIterable):
        raise SourceError(
            "the source is an async iterable, and this call blocks the event loop that runs in this thread: "
            f"use `{instead}`"
        )
