"""The stores that need no server keep the contract, and so does one with nothing but ``put`` and ``check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from async_maps.settings import Settings
from async_maps.stores import open_store
from async_maps.stores.files import FileStore
from tests.stores.contract import Opened, StoreContract
from tests.support.maps import random_map

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = [pytest.mark.fast]

THREADS = Settings(workers=0)


class Minimal:
    """No capability that is optional."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.checked = 0

    async def check(self) -> None:
        self.checked += 1

    async def put(self, key: str, data: bytes) -> str | None:
        self.objects[key] = data
        return None


class TestMinimalStore(StoreContract):
    @pytest.fixture
    def opened(self) -> Opened:
        store = Minimal()

        async def read(key: str) -> bytes:
            return store.objects[key]

        return Opened(store, read)


class TestMemoryStore(StoreContract):
    prefix = "pre/fix"

    @pytest.fixture
    def opened(self) -> Opened:
        store = am.MemoryStore("pre/fix")

        async def read(key: str) -> bytes:
            return store.objects[key]

        return Opened(store, read)


class TestFileStore(StoreContract):
    @pytest.fixture
    async def opened(self, tmp_path: Path) -> AsyncIterator[Opened]:
        async def read(key: str) -> bytes:
            return (tmp_path / "out folder" / key).read_bytes()

        async with open_store(tmp_path / "out folder", Settings()) as store:
            assert isinstance(store, FileStore)
            yield Opened(store, read)


# What a store lacks -------------------------------------------------------------------------------------------------


async def test_a_store_without_an_address_gets_one_of_its_class() -> None:
    store = Minimal()
    async with am.Pipeline(store, settings=THREADS) as pipeline:
        receipt = await pipeline.put("a/b", random_map(1))
        report = await pipeline.run([("c", random_map(2))])
    assert receipt.locator == "store://Minimal/a/b.png"
    assert report.destination == "store://Minimal"
    assert set(store.objects) == {"a/b.png", "c.png"}
    assert store.checked == 1


async def test_a_store_with_every_capability_is_asked_for_each() -> None:
    class Addressed(Minimal):
        destination = "https://example.com/overlays"
        identity = "https://example.com/overlays at night"
        prefix = "p/q"

        def locator(self, key: str) -> str:
            return f"https://cdn.example.com/{key}"

    store = Addressed()
    async with am.Pipeline(store, settings=THREADS) as pipeline:
        receipt = await pipeline.put("a", random_map(1))
    assert receipt.locator == "https://cdn.example.com/p/q/a.png"
    assert set(store.objects) == {"p/q/a.png"}


def test_a_manifest_is_bound_to_the_identity_of_a_store(tmp_path: Path) -> None:
    manifest = tmp_path / "m.sqlite"
    assert am.run([("a", random_map(1))], am.MemoryStore("x"), settings=THREADS, manifest=manifest).uploaded == 1
    with pytest.raises(am.ManifestError, match=r"is the manifest of memory://x, this run goes to memory://y"):
        am.run([("a", random_map(1))], am.MemoryStore("y"), settings=THREADS, manifest=manifest)


def test_every_function_with_a_destination_takes_a_store() -> None:
    store = am.MemoryStore()
    maps = [(f"{n}", random_map(n)) for n in range(3)]
    assert am.dry_run(maps, store, settings=THREADS).planned == 3
    assert not store.objects
    outcomes = am.stream(maps, store, settings=THREADS)
    assert {outcome.name for outcome in outcomes if isinstance(outcome, am.Receipt)} == {"0", "1", "2"}
    assert sorted(store.objects) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("lacking", [object(), 7, None])
async def test_what_is_no_store_is_refused_with_what_it_lacks(lacking: Any) -> None:
    with pytest.raises(am.SettingsError, match="without put and check; expected a string, a path, or a store"):
        async with am.Pipeline(lacking):
            pass


# A store that fails -------------------------------------------------------------------------------------------------


async def test_an_unknown_error_of_put_fails_its_map_and_no_other() -> None:
    class Flawed(Minimal):
        async def put(self, key: str, data: bytes) -> str | None:
            if key == "1.png":
                raise LookupError("no shelf")
            return await super().put(key, data)

    store = Flawed()
    async with am.Pipeline(store, settings=THREADS) as pipeline:
        report = await pipeline.run([(f"{n}", random_map(n)) for n in range(3)])
    assert (report.uploaded, report.failed) == (2, 1)
    (failure,) = report.failures
    assert (failure.name, failure.stage) == ("1", "upload")
    assert failure.reason == "the store Flawed failed: LookupError('no shelf')"


async def test_an_unknown_error_of_check_refuses_the_pipeline() -> None:
    class Absent(Minimal):
        async def check(self) -> None:
            raise OSError("no such shelf")

    with pytest.raises(am.StoreError, match=r"the store Absent cannot be used: OSError\('no such shelf'\)"):
        async with am.Pipeline(Absent(), settings=THREADS):
            pass


async def test_a_store_that_raises_transient_errors_is_tried_again() -> None:
    class Busy(Minimal):
        def __init__(self) -> None:
            super().__init__()
            self.refusals = 2

        async def put(self, key: str, data: bytes) -> str | None:
            if self.refusals:
                self.refusals -= 1
                raise am.TransientError("busy")
            return await super().put(key, data)

    store = Busy()
    async with am.Pipeline(store, settings=THREADS) as pipeline:
        await pipeline.put("a", random_map(1))
    assert set(store.objects) == {"a.png"}
    assert pipeline.statistics().retries == 2


async def test_memory_keeps_what_is_there_if_it_must_not_be_replaced() -> None:
    store = am.MemoryStore(replace=False)
    assert await store.put("a", b"first") == "8b04d5e3775d298e78455efc5ca404d5"
    with pytest.raises(am.ExistsError, match="another object is there already") as raised:
        await store.put("a", b"second")
    assert (raised.value.same, raised.value.etag) == (False, "a9f0e61a137d86aa9db53465e0801612")
    with pytest.raises(am.ExistsError, match="the same object is there already") as raised:
        await store.put("a", b"first")
    assert raised.value.same
    assert store.objects == {"a": b"first"}
