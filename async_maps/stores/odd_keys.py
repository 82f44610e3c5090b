"""Keys that a server may spell otherwise: some take a backslash as a slash. Runs on the event loop."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from typing import TYPE_CHECKING
from urllib.parse import unquote

from async_maps.errors import ObjectError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_ODD = re.compile(r"[\\%+]|[^\x00-\x7f]")
_NOT_THERE = ""


def _other_form(key: str) -> str:
    composed = unicodedata.normalize("NFC", key)
    return composed if composed != key else unicodedata.normalize("NFD", key)


_SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda key: key.replace("\\", "/"),
    unquote,
    lambda key: key.replace("+", " "),
    _other_form,
)


class OddKeys:
    """Finds out, with the first key of each kind, whether the server takes its other spelling as the same object.

    If it does, the keys of this kind are refused, so that no map replaces another one.

    Args:
        find: returns the ETag and the time of an object, as one text, empty if it does not exist; None if the store
            refuses to tell.
    """

    def __init__(self, find: Callable[[str], Awaitable[str | None]]) -> None:
        self._find = find
        self._asking = asyncio.Lock()
        self._same: dict[int, bool] = {}
        self._under_way: dict[str, asyncio.Event | None] = {}  # an event if its end is waited for
        self._asked = ""

    async def put(self, key: str, put: Callable[[], Awaitable[str | None]]) -> str | None:
        """Store an object by ``put``; ask for its other spelling before and after, if that is not known.

        Raises:
            ObjectError: the server takes another key as the same object.
        """
        if key == self._asked:
            async with self._asking:  # the object that is asked for must not appear meanwhile
                pass
        self._under_way.setdefault(key, None)
        try:
            if _ODD.search(key) is None or self._unknown(key) is None:
                return await put()
            async with self._asking:
                # Meanwhile another key may have shown it.
                if (kind := self._unknown(key)) is None:
                    return await put()
                return await self._ask(kind, key, put)
        finally:
            if (waited_for := self._under_way.pop(key, None)) is not None:
                waited_for.set()

    async def _ask(self, kind: int, key: str, put: Callable[[], Awaitable[str | None]]) -> str | None:
        self._asked = other = _SPELLINGS[kind](key)
        try:
            if other in self._under_way and _ODD.search(other) is None:
                done = self._under_way[other] = self._under_way[other] or asyncio.Event()
                await done.wait()
            if before := await self._find(other):
                self._same[kind] = await self._find(key) == before
                self._unknown(key)
            tag = await put()
            if not before:
                after = None if before is None else await self._find(other)
                self._same[kind] = bool(after) and after == await self._find(key)
            self._unknown(key)
            return tag
        finally:
            self._asked = ""

    def _unknown(self, key: str) -> int | None:
        """Return the first kind of the key of which nothing is known; refuse keys with two spellings."""
        kinds = {kind: other for kind, spell in enumerate(_SPELLINGS) if (other := spell(key)) != key}
        for kind, other in kinds.items():
            if self._same.get(kind):
                raise ObjectError(
                    f"the server takes the keys {key!r} and {other!r} as one object: rename the map, or the prefix"
                )
        return next((kind for kind in kinds if kind not in self._same), None)
