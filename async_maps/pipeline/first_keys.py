"""Guards the overlays of other runs: looks for objects under the keys of the first maps of a new manifest."""

from __future__ import annotations

import asyncio
import logging
import unicodedata
from typing import TYPE_CHECKING

from anyio import create_task_group

from async_maps.errors import SettingsError
from async_maps.keys import printable
from async_maps.sources.activation_map import ActivationMap
from async_maps.sources.batches import with_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from async_maps.manifest.recorder import Recorder
    from async_maps.report import Report
    from async_maps.settings import Settings
    from async_maps.stores import AddressedStore

_logger = logging.getLogger("async_maps")

_FIRST = 32
"""The number of maps whose keys are looked up, all concurrently."""


class FirstKeys:
    """Asks the store for the keys of a run's first maps, before they are sent.

    A manifest that lists an overlay asks nothing, so repeated runs are quiet. Nor does a run that leaves existing
    objects as they are (``if_exists="skip"``), or whose keys have digests: equal keys are then equal overlays.
    """

    def __init__(  # noqa: PLR0913  # the last two only say how to tell
        self,
        recorder: Recorder,
        store: AddressedStore,
        settings: Settings,
        report: Report,
        *,
        level: int = logging.WARNING,
        lister: str = "",
    ) -> None:
        self._recorder = recorder
        self._store = store
        self._settings = settings
        self._report = report
        self._level = level
        self._lister = lister or printable(str(recorder.path))
        self._has: Callable[[str], Awaitable[bool | None]] | None = getattr(store, "has", None)
        is_safe = settings.if_exists == "skip" or settings.key_template.needs_digest
        self._left = 0 if is_safe or self._has is None else _FIRST
        self._asked: set[str] = set()

    async def check(self, maps: Sequence[ActivationMap]) -> None:
        """Look for objects of other runs under the keys of the maps; say once that they are replaced.

        Raises:
            SettingsError: there are objects, and ``if_exists`` is ``error`` or the keys number the maps.
        """
        if self._has is None or not self._left or not maps:
            return
        if self._left == _FIRST and await self._recorder.lists_overlays():
            self._left = 0
            return
        first = maps[: self._left]
        self._left -= len(first)
        keys = await self._keys(first)
        has, found = self._has, list[str]()

        async def look(key: str) -> None:
            if await has(key):
                found.append(key)

        async with create_task_group() as looking:
            for key in keys:
                looking.start_soon(look, key)
                # The SDK prepares a request in milliseconds: let others run in between.
                await asyncio.sleep(0)
        if found:
            self._left = 0
            self._tell(min(found), len(found), len(keys))

    async def _keys(self, maps: Sequence[ActivationMap]) -> list[str]:
        """Return the keys of the maps, without those that this or an earlier run with the manifest may have sent."""
        template, store = self._settings.key_template, self._store
        sent = await self._recorder.sent_with(self._settings.key, maps)
        keys = []
        for map_ in maps:
            entry = with_key(map_, store.prefix, template, store.locator)
            if map_.name in sent or map_.maybe_at is not None or not isinstance(entry, ActivationMap):
                continue
            key = template.key(store.prefix, entry.name, entry.index)
            # Some disks take these as one file; the second map fails later, by its name.
            same = unicodedata.normalize("NFC", key).casefold()
            if same not in self._asked:
                self._asked.add(same)
                keys.append(key)
        return keys

    def _tell(self, example: str, found: int, asked: int) -> None:
        settings, them = self._settings, "it" if found == 1 else "them"
        locator = printable(self._store.locator(example))
        what = f"{locator} exists already"
        if asked > 1:
            exist = "overlays exists" if found == 1 else "overlays exist"
            what = f"{self._store.destination}: {found} of the first {asked} {exist} already, such as {locator}"
        unknown = f"and {self._lister} does not list {them}"
        if settings.if_exists == "error":
            raise SettingsError(f"{what}, {unknown}: choose another prefix, or use --if-exists skip")
        if settings.key_template.is_number:
            raise SettingsError(
                f"{what}: key {settings.key!r} numbers the maps of each manifest from 0, and would replace overlays of "
                "other maps; use {name} in the key, or choose another prefix"
            )
        warning = (
            f"{what}, {unknown}. The run replaces {them}. If another run stored {them}, choose another prefix; to keep "
            "objects that exist, use --if-exists skip or error"
        )
        self._report.warnings.append(warning)
        _logger.log(self._level, "%s", warning)
