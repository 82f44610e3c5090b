"""No request waits without end for the other side of its connection."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock
from urllib.parse import urlsplit

import pytest

from async_maps.errors import ObjectError, TransientError
from async_maps.filesystems.addresses import Address
from async_maps.filesystems.direct_gets import Wanted
from async_maps.filesystems.filesystem import InaccessibleError
from async_maps.filesystems.http_session import Watches
from async_maps.filesystems.s3 import S3Filesystem
from async_maps.filesystems.time_limits import TimeLimits, TooSlowError
from async_maps.settings import S3Settings, Settings
from async_maps.stores import open_store
from tests.support.certificates import make_certificate
from tests.support.faulty_server import EARLY, FAULTS, Faulty, faulty
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from async_maps.stores import AddressedStore

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SOON: dict[str, Any] = {"read_timeout_s": 0.3, "give_up_s": 0.6, "max_attempts": 1}
LARGE = bytes(8 * 2**20)
"""More than the buffers of both sides hold."""
_TOO_LONG_S = 10.0


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch, service_descriptions_read_once: None) -> AsyncIterator[Faulty]:
    async with faulty(monkeypatch) as running:
        yield running
        if running.fault not in EARLY:
            async with asyncio.timeout(_TOO_LONG_S):
                await running.left.wait()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def settings(**more: Any) -> Settings:
    return Settings(s3=S3Settings(**SOON, **more))


@asynccontextmanager
async def both_clients() -> AsyncIterator[tuple[AddressedStore, AddressedStore]]:
    """Open a store that sends its next PUT directly, and one that sends it with the SDK."""
    async with (
        open_store("s3://bucket/p", settings(client="direct")) as direct,
        open_store("s3://bucket/p", settings(client="sdk")) as sdk,
    ):
        await direct.put("p/first.png", b"x")
        await sdk.put("p/first.png", b"x")
        yield direct, sdk


async def errors(*requests: Coroutine[Any, Any, object]) -> list[BaseException | object]:
    async with asyncio.timeout(_TOO_LONG_S):
        return await asyncio.gather(*requests, return_exceptions=True)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_put_ends_with_a_transient_error(fault: str, server: Faulty) -> None:
    async with both_clients() as stores:
        server.fault = fault
        found = await errors(*(store.put("p/a.png", LARGE) for store in stores))
    assert [type(error) for error in found] == [TransientError] * 2
    assert all(re.match(r"s3://bucket/p: (no byte has|too few bytes have) moved", str(error)) for error in found)


@pytest.mark.parametrize("early", EARLY)
async def test_an_answer_before_the_body_is_read_is_the_answer(early: str, server: Faulty) -> None:
    async with both_clients() as stores:
        server.fault = early
        found = await errors(*(store.put("p/a.png", LARGE) for store in stores))
    assert [type(error) for error in found] == [ObjectError] * 2
    assert all("EntityTooLarge" in str(error) for error in found)


async def test_a_cancelled_put_leaves_no_connection(server: Faulty) -> None:
    async with open_store("s3://bucket/p", Settings()) as store:
        await store.put("p/first.png", b"x")
        server.fault = "stops reading"
        putting = asyncio.create_task(store.put("p/a.png", LARGE))
        await server.met.wait()
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        # The idle connection of the SDK stays.
        async with asyncio.timeout(_TOO_LONG_S):
            while server.connections > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def test_no_put_waits_for_100_continue(server: Faulty) -> None:
    async with open_store("s3://bucket/p", settings(client="sdk")) as store:
        assert await store.put("p/a.png", b"pixels") == "tag"
    assert b"expect" not in server.heads[0].lower()


@pytest.mark.parametrize("fault", ["drips a head", "drips a body", "stalls in a body", "no answer"])
async def test_looking_for_an_object_before_a_put_ends(fault: str, server: Faulty) -> None:
    server.fault, server.of = fault, {"GET"}
    async with open_store("s3://bucket/p", settings().model_copy(update={"if_exists": "skip"})) as store:
        (found,) = await errors(store.put("p/a.png", b"pixels"))
    assert isinstance(found, TransientError)
    assert "moved" in str(found)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"stops reading", "takes drops"}))
async def test_a_request_of_a_source_ends(fault: str, server: Faulty) -> None:
    server.fault = fault
    filesystem = S3Filesystem(S3Settings(**SOON))
    requests: list[Callable[[], object]] = [
        lambda: list(filesystem.objects("bucket", "prefix")),
        lambda: filesystem.get(Address("s3", "bucket", "key"), 0, 1000),
        lambda: filesystem.delete("bucket", ["key"]),
    ]
    if not fault.endswith("a body"):
        requests.append(lambda: filesystem.find("s3://bucket/key"))
    results = await asyncio.gather(*map(asyncio.to_thread, requests), return_exceptions=True)
    await asyncio.to_thread(filesystem.close)
    told = "the store did not send its whole answer in time (s3.read_timeout_s)"
    assert [(type(result), str(result)) for result in results] == [(InaccessibleError, told)] * len(requests)


@pytest.mark.parametrize("fault", sorted(FAULTS.keys() - {"stops reading", "takes drops"}))
async def test_a_direct_get_ends(fault: str, server: Faulty) -> None:
    filesystem, address = S3Filesystem(S3Settings(**SOON)), Address("s3", "bucket", "key")
    await asyncio.to_thread(filesystem.get, address, 0, 1000)
    server.fault = fault
    begun = filesystem.begin(address, Wanted(0, 1000))
    async with asyncio.timeout(_TOO_LONG_S):
        assert await asyncio.wrap_future(begun) is None
    assert server.met.is_set()
    await asyncio.to_thread(filesystem.close)


@pytest.mark.parametrize("fault", ["drips a head", "drips a body"])
async def test_attempts_of_a_listing_that_drips_share_their_time(fault: str, server: Faulty) -> None:
    server.fault = fault
    filesystem = S3Filesystem(S3Settings(read_timeout_s=0.3, give_up_s=0.3, max_attempts=5))
    with pytest.raises(InaccessibleError, match="did not send its whole answer in time"):
        await asyncio.to_thread(list, filesystem.objects("bucket", "prefix"))
    await asyncio.to_thread(filesystem.close)
    assert len(server.heads) == 1


async def test_closing_a_filesystem_ends_its_waiting_threads(server: Faulty) -> None:
    server.fault = "no answer"
    filesystem = S3Filesystem(S3Settings())
    waiting = asyncio.create_task(asyncio.to_thread(filesystem.find, "s3://bucket/key"))
    await server.met.wait()
    filesystem.close()
    with pytest.raises(InaccessibleError, match="the source is closed"):
        await waiting


async def test_closing_a_filesystem_ends_a_thread_that_waits_for_a_proxy(
    server: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault = "no answer"
    monkeypatch.setenv("HTTPS_PROXY", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example")
    filesystem = S3Filesystem(S3Settings(connect_timeout_s=60.0))
    waiting = asyncio.create_task(asyncio.to_thread(filesystem.find, "s3://bucket/key"))
    await server.met.wait()
    filesystem.close()
    with pytest.raises(InaccessibleError, match="the source is closed"):
        await waiting


@pytest.mark.parametrize("fault", ["no answer", "drips a head"])
async def test_a_put_through_a_proxy_that_does_not_answer_ends(
    fault: str, server: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault = fault
    monkeypatch.setenv("HTTPS_PROXY", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.example")
    async with open_store("s3://bucket/p", settings()) as store:
        (found,) = await errors(store.put("p/a.png", b"pixels"))
    assert isinstance(found, TransientError)
    assert "moved" in str(found)
    assert server.heads[0].startswith(b"CONNECT store.example:443 ")


async def test_a_server_that_does_not_shake_hands_ends_a_put(server: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fault = "silent"
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"].replace("http:", "https:"))
    async with open_store("s3://bucket/p", settings()) as store:
        (found,) = await errors(store.put("p/a.png", b"pixels"))
    assert isinstance(found, TransientError)
    assert "no byte has moved" in str(found)


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_connection_with_tls_that_breaks_is_a_transient_error(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service_descriptions_read_once: None
) -> None:
    certificate = make_certificate(tmp_path, ["localhost"])

    async def put() -> None:
        async with faulty(monkeypatch, certificate) as server, both_clients() as stores:
            server.fault = "closes"
            found = [await errors(store.put("p/a.png", data)) for store in stores for data in (b"pixels", LARGE)]
        assert [type(error) for (error,) in found] == [TransientError] * 4

    (asyncio if loop == "asyncio" else pytest.importorskip("uvloop")).run(put())


async def test_a_request_that_waits_after_its_tls_connection_broke_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = make_certificate(tmp_path, ["localhost"])
    trusted = ssl.create_default_context(cafile=certificate)
    async with faulty(monkeypatch, certificate) as server:
        server.fault = "closes"
        port = urlsplit(os.environ["AWS_ENDPOINT_URL"]).port
        reader, writer = await asyncio.open_connection("localhost", port, ssl=trusted)

        async def request() -> None:
            watch = Watches(TimeLimits(0.1, 1.0)).watch(0)
            with watch:
                watch.uses(Mock(transport=writer.transport))
                writer.write(b"PUT / HTTP/1.1\r\n\r\n")
                await reader.read()
                await asyncio.sleep(_TOO_LONG_S)

        with pytest.raises(TooSlowError, match="no byte has moved"):
            await request()
