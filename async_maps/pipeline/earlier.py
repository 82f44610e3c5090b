"""An object of an earlier run, by which a run that has stored nothing yet finds out whether the store refuses all."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from anyio import to_thread

from async_maps.errors import SourceError, StoreError
from async_maps.filesystems.objects import Objects

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_maps.manifest.recorder import Recorder
    from async_maps.settings import Settings
    from async_maps.stages.graph import Stages
    from async_maps.stores import AddressedStore


@asynccontextmanager
async def knowing_earlier(recorder: Recorder | None, stages: Stages, settings: Settings) -> AsyncIterator[None]:
    """Let the stages ask for an object of an earlier run in the ``with`` block."""
    if recorder is not None:
        stages.control.earlier = EarlierObject(recorder, stages.store, settings)
    try:
        yield
    finally:
        stages.control.earlier = None


class EarlierObject:
    """A small object that the manifest lists as stored, and that the run does not replace."""

    def __init__(self, recorder: Recorder, store: AddressedStore, settings: Settings) -> None:
        self._recorder = recorder
        self._store = store
        self._settings = settings

    async def key(self) -> str | None:
        """Return its key; None if there is no such object."""
        locator = await self._recorder.stored_locator()
        if locator is None:
            return None
        key = locator.removeprefix(self._store.locator(""))
        return key if self._store.locator(key) == locator else None

    async def read(self, key: str) -> bytes | None:
        """Return its bytes; None if it cannot be read."""
        return await to_thread.run_sync(partial(self._read, self._store.locator(key)))

    def _read(self, locator: str) -> bytes | None:
        try:
            with Objects(self._settings.s3) as objects:
                return bytes(objects.read(locator).data)
        except (OSError, SourceError, StoreError):
            return None
