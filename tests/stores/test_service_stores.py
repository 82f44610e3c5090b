"""Stores in Google Cloud Storage and Azure pass the contract, and prove what the service keeps."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

import async_maps as am
from async_maps.errors import ExistsError, SettingsError, StoreError, TransientError
from async_maps.filesystems.verdict import UnjudgedError
from async_maps.stores import open_store
from async_maps.stores.promises import BrokenPromiseError
from async_maps.stores.service import ServiceStore
from tests.stores.contract import Opened, StoreContract
from tests.support.clouds import azure, azurite_url, cloud, emulator, emulator_url, gcs_server, stand_in
from tests.support.maps import random_map
from tests.support.s3_proxy import Refusal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.clouds import Cloud, Gcs, StandIn

__all__ = ["azure", "azurite_url", "cloud", "emulator", "emulator_url", "gcs_server", "stand_in"]

CREATE_ONLY = am.Settings(if_exists="error")


async def _opened(cloud: Cloud, settings: am.Settings) -> AsyncIterator[Opened]:
    async def read(key: str) -> bytes:
        return await asyncio.to_thread(cloud.read, key)

    async with open_store(f"{cloud.address}/pre/fix/", settings) as store:
        assert isinstance(store, ServiceStore)
        yield Opened(store, read)


class TestServiceStore(StoreContract):
    prefix = "pre/fix"

    @pytest.fixture
    async def opened(self, cloud: Cloud) -> AsyncIterator[Opened]:
        async for opened in _opened(cloud, am.Settings()):
            yield opened


class TestEmulatorOfGcs(StoreContract):
    prefix = "pre/fix"

    @pytest.fixture
    async def opened(self, emulator: Gcs) -> AsyncIterator[Opened]:
        # It resets connections if there are many.
        async for opened in _opened(emulator, am.Settings(concurrency=4)):
            yield opened


# Addresses and headers ----------------------------------------------------------------------------------------------


async def test_a_locator_in_azure_is_the_url_of_the_blob(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account1")
    monkeypatch.setenv("AZURE_STORAGE_KEY", "a2V5")
    async with open_store("az://maps/p q//", am.Settings()) as store:
        assert store.destination == store.identity == "https://account1.blob.core.windows.net/maps/p%20q"
        assert store.prefix == "p q"
        assert store.locator("p q/é b%.png") == f"{store.destination}/%C3%A9%20b%25.png"
    async with open_store("https://account1.blob.core.windows.net/maps/p%20q", am.Settings()) as named:
        assert (named.destination, named.prefix) == (store.destination, store.prefix)


async def test_a_locator_in_google_cloud_is_not_percent_encoded(stand_in: StandIn) -> None:
    async with open_store(f"{stand_in.address}/p q/", am.Settings()) as store:
        assert store.destination == f"{stand_in.address}/p q"
        assert store.identity == f"{stand_in.address}/p q at {stand_in.url}"
        assert store.locator("p q/é b%.png") == f"{stand_in.address}/p q/é b%.png"


async def test_the_headers_of_the_settings_are_kept(stand_in: StandIn) -> None:
    settings = am.Settings(s3={"cache_control": "public, max-age=60", "metadata": {"run": "7"}})
    async with open_store(stand_in.address, settings) as store:
        await store.put("a.png", b"pixels")
    kept = stand_in.server.objects[stand_in.bucket]["a.png"].properties
    assert (kept["cacheControl"], kept["metadata"], kept["contentType"]) == (
        "public, max-age=60", {"run": "7"}, "image/png",
    )  # fmt: skip


@pytest.mark.parametrize("given", [{"acl": "private"}, {"storage_class": "COLD"}, {"tagging": {"a": "b"}}])
async def test_a_setting_that_only_s3_has_is_refused(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(SettingsError, match=f"s3.{name} is for destinations in S3 only: leave it out for gs://"):
        async with open_store("gs://bucket/p", am.Settings(s3=given)):
            pass


# Proofs -------------------------------------------------------------------------------------------------------------


async def test_an_existing_object_is_left_alone_with_create_only(cloud: Cloud) -> None:
    async with open_store(cloud.address, CREATE_ONLY) as store:
        md5 = hashlib.md5(b"first", usedforsecurity=False).hexdigest()
        assert await store.put("a.png", b"first") == md5
        for data, same in ((b"second", False), (b"first", True)):
            with pytest.raises(ExistsError) as raised:
                await store.put("a.png", data)
            assert (raised.value.same, raised.value.etag) == (same, md5)
        assert await store.put("empty.png", b"") is not None
        with pytest.raises(ExistsError) as raised:
            await store.put("empty.png", b"")
        assert raised.value.same
    assert await asyncio.to_thread(cloud.read, "a.png") == b"first"


async def test_racers_for_one_key_have_one_winner(cloud: Cloud) -> None:
    async with open_store(cloud.address, CREATE_ONLY) as store:
        await store.put("first.png", b"pixels")
        ended = await asyncio.gather(
            *(store.put("same.png", bytes([number])) for number in range(16)), return_exceptions=True
        )
        assert sum(isinstance(one, ExistsError) for one in ended) == 15
        (winner,) = (number for number, one in enumerate(ended) if isinstance(one, str))
    assert await asyncio.to_thread(cloud.read, "same.png") == bytes([winner])


async def test_a_server_that_ignores_the_condition_ends_the_run(emulator: Gcs) -> None:
    await asyncio.to_thread(emulator.upload, "b.png", b"of another run")
    async with open_store(emulator.address, CREATE_ONLY) as store:
        for key in ("a.png", "b.png"):
            with pytest.raises(
                BrokenPromiseError, match=r"ignores ifGenerationMatch.* only gs://.*/a\.png was written"
            ):
                await store.put(key, b"pixels")
    assert await asyncio.to_thread(emulator.read, "b.png") == b"of another run"


async def test_an_object_that_was_there_is_left_alone_before_the_proof(cloud: Cloud) -> None:
    await asyncio.to_thread(cloud.upload, "a.png", b"of another run")
    async with open_store(cloud.address, CREATE_ONLY) as store:
        with pytest.raises(ExistsError):
            await store.put("a.png", b"pixels")
        assert await store.put("b.png", b"pixels") is not None
    assert await asyncio.to_thread(cloud.read, "a.png") == b"of another run"


@pytest.mark.parametrize("answer", [Refusal(200), Refusal(200, "page", "sign in"), Refusal(201)])
async def test_an_answer_without_the_checksums_proves_nothing(answer: Refusal, cloud: Cloud) -> None:
    async with open_store(cloud.address, am.Settings()) as store:
        cloud.refuse_with(lambda method, *_: answer if method == "PUT" else None)
        with pytest.raises(TransientError, match="the answer does not prove that the store has these bytes"):
            await store.put("a.png", b"pixels")


async def test_bytes_that_change_on_the_way_are_refused(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(cloud.address, am.Settings()) as store:
        service: Any = store._service  # type: ignore[attr-defined]  # what a hop between would do
        put = service.put

        def damaged(*arguments: Any, **options: Any) -> Any:
            request = put(*arguments, **options)
            return request._replace(body=request.body.replace(b"pixels", b"pixelZ"))

        monkeypatch.setattr(service, "put", damaged)
        with pytest.raises(TransientError, match=r"refused with (hashMismatch|Md5Mismatch)"):
            await store.put("a.png", b"pixels")
        assert await store.has("a.png") is False  # type: ignore[attr-defined]  # an optional method


async def test_an_object_with_a_key_of_the_customer_has_no_tag(stand_in: StandIn) -> None:
    stand_in.server.md5s = False
    async with open_store(stand_in.address, am.Settings()) as store:
        assert await store.put("a.png", b"pixels") is None


# Refusals -----------------------------------------------------------------------------------------------------------


async def test_a_missing_bucket_is_found_by_the_check(cloud: Cloud) -> None:
    async with open_store(f"{cloud.scheme}://no-such-bucket/p", am.Settings()) as store:
        with pytest.raises(StoreError, match=r"the (bucket|container) does not exist") as raised:
            await store.check()
    assert not raised.value.may_pass


async def test_a_refused_check_is_left_to_the_first_object(cloud: Cloud) -> None:
    cloud.refuse_with(lambda *_: cloud.denied)
    async with open_store(cloud.address, am.Settings()) as store:
        await store.check()
        with pytest.raises(UnjudgedError, match="not for you"):
            await store.put("a.png", b"pixels")


async def test_a_store_that_is_busy_asks_for_fewer_requests(cloud: Cloud) -> None:
    cloud.refuse_with(lambda *_: cloud.busy)
    async with open_store(cloud.address, am.Settings()) as store:
        with pytest.raises(TransientError, match=f"refused with {cloud.busy.code}: less") as raised:
            await store.put("a.png", b"pixels")
    assert raised.value.slow_down


@pytest.mark.parametrize("scheme", ["gs", "az"])
async def test_a_server_that_does_not_answer_may_pass(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if scheme == "gs":
        pytest.importorskip("google.auth", reason="the package google-auth is not installed")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:9")
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        "AccountName=devstore;AccountKey=a2V5;BlobEndpoint=http://127.0.0.1:9/devstore",
    )
    async with open_store(f"{scheme}://bucket", am.Settings()) as store:
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:9") as raised:
            await store.check()
        assert raised.value.may_pass
        with pytest.raises(TransientError):
            await store.put("a.png", b"pixels")


async def test_a_run_resumes_where_it_stopped(cloud: Cloud, tmp_path: Any) -> None:
    maps = [(f"{number} é%", random_map(number)) for number in range(12)]
    options = {"settings": am.Settings(workers=0), "manifest": tmp_path / "m.sqlite"}
    first = await am.arun(maps[:5], f"{cloud.address}/p", **options)
    again = await am.arun(maps, f"{cloud.address}/p", **options)
    assert (first.uploaded, again.uploaded, again.failed) == (5, 12, 0)
