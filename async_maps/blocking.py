"""Synchronous versions of coroutine functions, for scripts, threads and notebooks."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterable
from functools import partial, wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from async_maps.concurrency.loop import run_blocking
from async_maps.errors import SourceError, naming_shortages

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

P = ParamSpec("P")
T = TypeVar("T")


def blocking(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make the synchronous twin of a coroutine function ``aname``, called ``name``.

    The twin runs the coroutine by :func:`~async_maps.concurrency.loop.run_blocking`.
    """
    name = function.__name__.removeprefix("a")
    summary, _, rest = (inspect.getdoc(function) or "").partition("\n")

    @wraps(function)
    def twin(*arguments: P.args, **keywords: P.kwargs) -> T:
        for argument in (*arguments, *keywords.values()):
            refuse_bound(argument, f"await am.a{name}(...)")
        with naming_shortages():
            return run_blocking(partial(function, *arguments, **keywords))

    twin.__name__ = twin.__qualname__ = name
    twin.__doc__ = f"{summary}\n\nBlocks until done: :func:`a{name}` for scripts, threads and notebooks.\n{rest}"
    return twin


def refuse_bound(source: object, instead: str) -> None:
    """Refuse an async iterable if an event loop runs in this thread: the call blocks the loop that the iterable needs.

    Raises SourceError, which recommends the call ``instead``.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    if isinstance(source, AsyncIterable):
        raise SourceError(
            f"the source is an async iterable, and this call blocks the event loop that it runs on: use `{instead}`"
        )
