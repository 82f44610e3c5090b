"""Stores without a server pass the contract, including one with only ``put`` and ``check``."""

from __future__ import annotations

import asyncio
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
    """A store without any optional method."""

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


# Optional methods ---------------------------------------------------------------------------------------------------


async def test_a_store_without_a_destination_is_named_by_its_class() -> None:
    store = Minimal()
    async with am.Pipeline(store, settings=THREADS) as pipeline:
        receipt = await pipeline.put("a/b", random_map(1))
        report = await pipeline.run([("c", random_map(2))])
    assert receipt.locator == "store://Minimal/a/b.png"
    assert report.destination == "store://Minimal"
    assert set(store.objects) == {"a/b.png", "c.png"}
    assert store.checked == 1


async def test_a_store_can_define_its_locator_and_prefix() -> None:
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
    with pytest.raises(am.ManifestError, match=r"is the manifest of memory://x, but this run writes to memory://y"):
        am.run([("a", random_map(1))], am.MemoryStore("y"), settings=THREADS, manifest=manifest)


def test_every_function_with_a_destination_accepts_a_store() -> None:
    store = am.MemoryStore()
    maps = [(f"{n}", random_map(n)) for n in range(3)]
    assert am.dry_run(maps, store, settings=THREADS).planned == 3
    assert not store.objects
    outcomes = am.stream(maps, store, settings=THREADS)
    assert {outcome.name for outcome in outcomes if isinstance(outcome, am.Receipt)} == {"0", "1", "2"}
    assert sorted(store.objects) == ["0.png", "1.png", "2.png"]


@pytest.mark.parametrize("lacking", [object(), 7, None])
async def test_an_object_without_put_and_check_is_refused(lacking: Any) -> None:
    with pytest.raises(am.SettingsError, match="without put and check; expected a string, a path, or a store"):
        async with am.Pipeline(lacking):
            pass


# Errors of a store --------------------------------------------------------------------------------------------------


async def test_an_unknown_error_of_put_fails_only_its_map() -> None:
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


async def test_transient_errors_of_a_store_are_retried() -> None:
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


@pytest.mark.parametrize(
    ("if_exists", "attempts_before", "same", "stored"),
    [
        ("skip", 0, True, True),
        ("skip", 0, False, False),
        ("error", 0, True, False),
        # An attempt that seemed to fail may have stored the object.
        ("error", 1, True, True),
        ("error", 1, False, False),
    ],
)
async def test_an_existing_object_counts_only_if_it_is_ours(
    if_exists: Any, attempts_before: int, same: bool, stored: bool
) -> None:
    class Kept(Minimal):
        attempts = 0

        async def put(self, key: str, data: bytes) -> str | None:
            self.attempts += 1
            if self.attempts <= attempts_before:
                raise am.TransientError("no answer")
            raise am.ExistsError("it is there", same=same, etag="tag")

    store = Kept()
    async with am.Pipeline(store, settings=Settings(workers=0, if_exists=if_exists)) as pipeline:
        if stored:
            assert (await pipeline.put("a", random_map(1))).etag == "tag"
        else:
            with pytest.raises(am.MapFailedError, match="it is there"):
                await pipeline.put("a", random_map(1))
    assert store.attempts == attempts_before + 1


async def test_a_memory_store_without_replace_keeps_its_objects() -> None:
    store = am.MemoryStore(replace=False)
    assert await store.put("a", b"first") == "8b04d5e3775d298e78455efc5ca404d5"
    with pytest.raises(am.ExistsError, match="another object already exists") as raised:
        await store.put("a", b"second")
    assert (raised.value.same, raised.value.etag) == (False, "a9f0e61a137d86aa9db53465e0801612")
    with pytest.raises(am.ExistsError, match="the same object already exists") as raised:
        await store.put("a", b"first")
    assert raised.value.same
    assert store.objects == {"a": b"first"}


class Refusing(Minimal):
    """Raises an error in ``put`` for one map, or in ``check``."""

    def __init__(self, error: BaseException, *, in_check: bool = False) -> None:
        super().__init__()
        self.error = error
        self.in_check = in_check

    async def check(self) -> None:
        if self.in_check:
            raise self.error

    async def put(self, key: str, data: bytes) -> str | None:
        if key == "1.png":
            raise self.error
        return await super().put(key, data)


class OwnError(am.AsyncMapsError):
    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")


@pytest.mark.parametrize(
    "error",
    [
        am.InputValidationError("not this one"),
        am.MissingExtraError("zstd", "zstd"),
        OwnError(418, "teapot"),
        asyncio.CancelledError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_other_errors_of_put_fail_only_their_map(error: BaseException) -> None:
    store = Refusing(error)
    report = await am.arun([(f"{n}", random_map(n)) for n in range(3)], store, settings=THREADS)
    assert (report.uploaded, report.failed) == (2, 1)
    assert report.failures[0].reason == f"the store Refusing failed: {error!r}"


@pytest.mark.parametrize("error", [am.SettingsError("no"), asyncio.CancelledError()], ids=lambda e: type(e).__name__)
async def test_any_other_error_of_check_is_a_store_error(error: BaseException) -> None:
    with pytest.raises(am.StoreError, match="the store Refusing cannot be used"):
        await am.arun([("a", random_map(1))], Refusing(error, in_check=True), settings=THREADS)


@pytest.mark.parametrize("prefix", ["/p", "p/", "p//q", "../x", "a\0b", "\ud800", None, 7])
async def test_an_invalid_prefix_of_a_store_is_refused(prefix: Any) -> None:
    store = Minimal()
    store.prefix = prefix  # type: ignore[attr-defined]
    with pytest.raises(am.SettingsError, match="prefix of the store Minimal"):
        await am.arun([("a", random_map(1))], store, settings=THREADS)
    assert not store.objects


@pytest.mark.parametrize("locator", [None, b"a", LookupError("no shelf")])
async def test_a_map_without_a_locator_fails_before_the_upload(locator: Any) -> None:
    class Unlocated(Minimal):
        def locator(self, _: str) -> Any:
            if isinstance(locator, Exception):
                raise locator
            return locator

    store = Unlocated()
    report = await am.arun([("a", random_map(1))], store, settings=THREADS)
    assert report.failed == 1
    assert "locator" in report.failures[0].reason
    assert not store.objects


async def test_an_etag_that_is_not_text_fails_its_map() -> None:
    class Tagged(Minimal):
        async def put(self, key: str, data: bytes) -> Any:
            return b"tag"

    report = await am.arun([("a", random_map(1))], Tagged(), settings=THREADS)
    assert report.failures[0].reason == "a tag of the store Tagged must be text or None; found bytes"
