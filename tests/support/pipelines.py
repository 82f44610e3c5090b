"""Pipelines with a store that the test controls, and waiting for conditions."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import async_maps as am
from async_maps import pipeline as pipeline_module
from async_maps.stores.memory import MemoryStore
from tests.support.leftovers import children

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import pytest

    from async_maps.stores import Store


THREADS = am.Settings(workers=0)


def use_store(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Let every pipeline of this test open this store."""

    @asynccontextmanager
    async def opened(*_: object) -> AsyncIterator[Store]:
        yield store

    monkeypatch.setattr(pipeline_module, "open_store", opened)


class SlowStore(MemoryStore):
    """A store that waits for its gate before it stores an object."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.asked = 0

    async def put(self, key: str, data: bytes) -> str:
        self.asked += 1
        await self.gate.wait()
        return await super().put(key, data)


class FailingStore(MemoryStore):
    """A store that refuses given keys, or every key after a number of objects."""

    def __init__(self, refused: set[str], *, dies_after: int = sys.maxsize) -> None:
        super().__init__()
        self.refused = refused
        self.dies_after = dies_after

    async def put(self, key: str, data: bytes) -> str:
        if len(self.objects) >= self.dies_after:
            raise am.StoreError("the store is on fire")
        if key in self.refused:
            raise am.ObjectError("not this one")
        return await super().put(key, data)


def worker_pids() -> list[int]:
    """Return the pids of the worker processes of this process."""
    return _children_that_run(b"async_maps.workers.worker")


def lane_pids() -> list[int]:
    """Return the pids of the lanes of this process."""
    return _children_that_run(b"async_maps.lanes.child")


def _children_that_run(module: bytes) -> list[int]:
    found = []
    for pid in children():
        with suppress(OSError):  # it has just ended
            if module in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


async def until(true: Callable[[], bool]) -> None:
    """Poll until a condition is true, for at most 60 s."""
    async with asyncio.timeout(60):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.002)
