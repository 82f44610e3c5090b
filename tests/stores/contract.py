"""The tests that every store passes. To run them for a new store, subclass :class:`StoreContract`::

class TestMyStore(StoreContract):
    @pytest.fixture
    async def opened(self):
        store = MyStore()
        yield Opened(store, store.read)
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

import async_maps as am
from async_maps.keys import KeyTemplate
from tests.support.maps import decode, random_map
from tests.support.names import AWKWARD

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

make_key = KeyTemplate("{name}.png").key


class Opened(NamedTuple):
    """A store, and a function that reads the object at a key without the store."""

    store: am.Store
    read: Callable[[str], Awaitable[bytes]]


class StoreContract:
    """The behavior that a pipeline relies on."""

    prefix = ""
    """The store's prefix, with which the keys of these tests begin."""

    @pytest.fixture
    def opened(self) -> Opened:
        """Return an empty store. Subclasses override this."""
        raise NotImplementedError

    def key(self, name: str) -> str:
        return make_key(self.prefix, name)

    async def test_put_stores_the_whole_object(self, opened: Opened) -> None:
        store, read = opened
        await store.check()
        for name, data in (("empty", b""), ("small", b"\x89PNG"), ("large", os.urandom(3 * 2**20))):
            await store.put(self.key(name), data)
            assert await read(self.key(name)) == data

    async def test_put_replaces_an_object(self, opened: Opened) -> None:
        store, read = opened
        for data in (b"a longer first version", b"second", b"third!"):
            await store.put(self.key("a"), data)
            assert await read(self.key("a")) == data

    async def test_special_names_are_distinct_objects(self, opened: Opened) -> None:
        store, read = opened
        keys = {self.key(name): name.encode() for name in AWKWARD}
        await asyncio.gather(*(store.put(key, data) for key, data in keys.items()))
        for key, data in keys.items():
            assert await read(key) == data, key

    @pytest.mark.seaweedfs
    async def test_concurrent_puts_of_one_key_leave_one_whole_object(self, opened: Opened) -> None:
        store, read = opened
        versions = [bytes([n]) * 200_000 for n in range(16)]
        await asyncio.gather(*(store.put(self.key("same"), data) for data in versions))
        assert await read(self.key("same")) in versions

    async def test_the_etag_is_the_md5_or_none(self, opened: Opened) -> None:
        tag = await opened.store.put(self.key("a"), b"pixels")
        assert tag is None or tag == hashlib.md5(b"pixels", usedforsecurity=False).hexdigest()

    async def test_a_key_of_1024_bytes_is_stored(self, opened: Opened) -> None:
        store, read = opened
        # Several parts, because a file system allows 255 bytes in each.
        name = "/".join(["é" * 100] * 8)[: (1024 - len(self.key(""))) // 2 - 10]
        key = self.key(name + "x" * (1024 - len(self.key(name).encode())))
        assert len(key.encode()) == 1024
        await store.put(key, b"pixels")
        assert await read(key) == b"pixels"

    async def test_a_pipeline_uploads_overlays(self, opened: Opened) -> None:
        store, read = opened
        activation_map = random_map(1)
        async with am.Pipeline(store, settings=am.Settings(workers=0)) as pipeline:
            receipts = [await pipeline.put(name, activation_map) for name in ("a", "deep/b c")]
        assert [receipt.name for receipt in receipts] == ["a", "deep/b c"]
        assert len({receipt.locator for receipt in receipts}) == 2
        for receipt in receipts:
            pixels = decode(await read(self.key(receipt.name)))
            assert (pixels == am.colorize_activation_map(activation_map)).all()
