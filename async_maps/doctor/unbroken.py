"""Requests that are never broken off: a PUT that is may arrive after its object was removed, and then it stays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CancelScope

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")

_PATIENCE_S = 5.0


async def unbroken(request: Coroutine[Any, Any, T]) -> T:
    """Wait for the request; who is cancelled meanwhile still waits for it, if it does not take long."""
    task = asyncio.create_task(request)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with CancelScope(shield=True):
            await asyncio.wait({task}, timeout=_PATIENCE_S)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        raise
