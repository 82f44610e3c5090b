"""A store in memory, for tests and for trying things out."""

from __future__ import annotations

import hashlib

from async_maps.errors import ExistsError


class MemoryStore:
    """Keeps the objects in a dictionary.

    Attributes:
        objects: key to bytes.
    """

    def __init__(self, prefix: str = "", *, replace: bool = True) -> None:
        self._replace = replace
        self.prefix = prefix
        self.destination = f"memory://{prefix}" if prefix else "memory://"
        self.identity = self.destination
        self.objects: dict[str, bytes] = {}

    def locator(self, key: str) -> str:
        """Where an object of that key lies."""
        return f"memory://{key}"

    async def check(self) -> None:
        """It is always there."""

    async def put(self, key: str, data: bytes) -> str:
        """Store the object; the tag is its MD5, as S3's is.

        Raises:
            ExistsError: there is one, and it is not to be replaced.
        """
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if not self._replace and key in self.objects:
            same = self.objects[key] == data
            what = "the same object" if same else "another object"
            raise ExistsError(f"{what} is there already, and is left as it is", same=same, etag=etag)
        self.objects[key] = data
        return etag
