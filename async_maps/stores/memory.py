"""A store in memory, for tests and for trying things out."""

from __future__ import annotations

import hashlib


class MemoryStore:
    """Keeps the objects in a dictionary.

    Attributes:
        objects: key to bytes.
    """

    def __init__(self, prefix: str = "") -> None:
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
        """Store the object; the tag is its MD5, as S3's is."""
        self.objects[key] = data
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
