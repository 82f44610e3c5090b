"""A store in memory."""

from __future__ import annotations

import hashlib

from async_maps.errors import ExistsError
from async_maps.keys import check_name


class MemoryStore:
    """Keeps overlays in a dictionary; a destination for tests.

    Args:
        prefix: the start of all keys.
        replace: whether an existing object is replaced; if false, ``put`` raises ExistsError.

    Attributes:
        objects: the PNGs by key.

    Raises:
        InputValidationError: the prefix is not a relative path.
    """

    def __init__(self, prefix: str = "", *, replace: bool = True) -> None:
        if prefix:
            check_name(prefix)
        self._replace = replace
        self.prefix = prefix
        self.destination: str = f"memory://{prefix}" if prefix else "memory://"
        self.identity: str = self.destination
        self.objects: dict[str, bytes] = {}

    def locator(self, key: str) -> str:
        """Return the URL of an object, ``memory://key``.

        Args:
            key: the key, prefix included.
        """
        return f"memory://{key}"

    async def check(self) -> None:
        """Do nothing: this store can always be used."""

    async def put(self, key: str, data: bytes) -> str:
        """Store an object.

        Args:
            key: the key, prefix included.
            data: the PNG.

        Returns:
            The MD5 of the PNG, like an ETag of S3.

        Raises:
            ExistsError: an object with that key exists, and ``replace`` is false.
        """
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        if not self._replace and key in self.objects:
            same = self.objects[key] == data
            what = "the same object" if same else "another object"
            raise ExistsError(f"{what} already exists, and is not replaced", same=same, etag=etag)
        self.objects[key] = data
        return etag
