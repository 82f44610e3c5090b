"""Objects of earlier runs, by which a run finds out whether the store refuses all objects."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from anyio import to_thread

from async_maps.errors import SourceError, StoreError
from async_maps.filesystems.addresses import is_remote, parse_address
from async_maps.filesystems.objects import Objects
from async_maps.stages.judge import FEW

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_maps.manifest.recorder import Recorder
    from async_maps.settings import Settings
    from async_maps.stages.graph import Stages
    from async_maps.stores import AddressedStore


@asynccontextmanager
async def knowing_earlier(recorder: Recorder | None, stages: Stages, settings: Settings) -> AsyncIterator[None]:
    """Let the stages ask for objects of earlier runs in the ``with`` block."""
    if recorder is not None:
        stages.control.earlier = EarlierObjects(recorder, stages.store, settings)
    try:
        yield
    finally:
        stages.control.earlier = None


class EarlierObjects:
    """A few small objects that the manifest lists as stored.

    They are chosen at random, because the store may refuse those with some names.
    """

    def __init__(self, recorder: Recorder, store: AddressedStore, settings: Settings) -> None:
        self._recorder = recorder
        self._store = store
        self._settings = settings
        self._keys: list[str] | None = None

    async def keys(self) -> list[str]:
        """Return their keys."""
        if self._keys is None:
            locators = await self._recorder.stored_locators(FEW)
            self._keys = [key for found in locators if self._store.locator(key := self._key_of(found)) == found]
        return self._keys

    async def read(self, key: str) -> bytes | None:
        """Return the bytes of one; None if it cannot be read."""
        return await to_thread.run_sync(partial(self._read, self._store.locator(key)))

    def done(self) -> None:
        """Nothing waits for this: one process puts all objects."""

    def _key_of(self, locator: str) -> str:
        return parse_address(locator).key if is_remote(locator) else locator[len(self._store.locator("")) :]

    def _read(self, locator: str) -> bytes | None:
        try:
            with Objects(self._settings.s3) as objects:
                return bytes(objects.read(locator).data)
        except (OSError, SourceError, StoreError):
            return None
