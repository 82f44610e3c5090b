"""A store in memory."""

from __future__ import annotations

import hashlib

from async_maps.errors import ExistsError


class MemoryStore:
    """Keeps overlays in a dictionary: a destination for tests.

    Args:
        prefix: the beginning of every key.
        replace: whether an object that is there is replaced; else ExistsError.

    Attributes:
        objects: key to PNG.
    """

    def __init__(self, prefix: str = "", *, replace: bool = True) -> None:
        self._replace = replace
        self.prefix = prefix
        self.destination: str = f"memory://{prefix}" if prefix else "memory://"
        self.identity: str = self.destination
        self.objects: dict[str, bytes] = {}

    def locator(self, key: str) -> str:
        """Return the URL of an object: ``memory://key``.

        Args:
            key: the key, prefix included.
        """
        return f"memory://{key}"

    async def check(self) -> None:
        """Nothing to check: it is always there."""

    async def put(self, key: str, data: bytes) -> str:
        """Store an object.

        Args:
            key: the key, prefix included.
            data: the PNG.

        Returns:
            Its MD5, as S3's tags are.

        Raises:
            ExistsError: there is an object of that key, and ``replace`` is false.
        """
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if not self._replace and key in self.objects:
            same = self.objects[key] == data
            what = "the same object" if same else "another object"
            raise ExistsError(f"{what} is there already, and is left as it is", same=same, etag=etag)
        self.objects[key] = data
        return etag
