"""What other lanes have stored or read, by which a lane finds out whether a store refuses all of its objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from async_maps.lanes.child import Child


class OfOthers:
    """Objects that other lanes have stored, or files that they have read: which of both is the ``kind``."""

    def __init__(self, child: Child, kind: str) -> None:
        self._child = child
        self._kind = kind
        self._found: dict[str, bytes] = {}
        self._has_asked = False

    async def keys(self) -> list[str]:
        """Return the keys or the paths of a few of them."""
        self._has_asked = True
        self._found = dict(await self._child.request(self._kind))
        return [*self._found]

    async def read(self, key: str) -> bytes | None:
        """Return the bytes of one; a file is not read."""
        return self._found.get(key)

    def done(self) -> None:
        """Let other bytes be put under their keys again."""
        self._found = {}
        if self._has_asked and self._kind == "stored":
            self._has_asked = False
            self._child.say("done")
