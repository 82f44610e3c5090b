"""Requests to other clouds end within limits, also if a server leaves a part of them unanswered."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from async_maps.errors import StoreError, TransientError
from async_maps.filesystems.addresses import parse_address
from async_maps.filesystems.filesystem import InaccessibleError
from async_maps.filesystems.services import open_filesystem
from async_maps.stores import open_store
from async_maps.stores.service import open_service_store
from tests.support.clouds import connection_string
from tests.support.faulty_server import FAULTS, faulty

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.faulty_server import Faulty

LIMITS = am.S3Settings(read_timeout_s=0.3, give_up_s=0.6, connect_timeout_s=1.0, max_attempts=2)
_LONGEST_S = 10.0


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Faulty]:
    async with faulty(monkeypatch) as found:
        monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection_string(os.environ["AWS_ENDPOINT_URL"]))
        yield found


@pytest.mark.parametrize("fault", [*FAULTS, "closes"])
async def test_a_put_ends_within_limits(fault: str, server: Faulty) -> None:
    server.fault = fault
    async with open_store("az://maps/p", am.Settings(s3=LIMITS)) as store:
        async with asyncio.timeout(_LONGEST_S):
            with pytest.raises(TransientError) as raised:
                await store.put("p/a.png", os.urandom(4 * 2**20))
            assert raised.value.timed_out == (fault != "closes")
            with pytest.raises(StoreError) as raised_by_check:
                await store.check()
            assert raised_by_check.value.may_pass
    await asyncio.wait_for(server.left.wait(), _LONGEST_S)


@pytest.mark.parametrize("fault", ["silent", "drips a head", "drips a body", "stalls in a body", "closes"])
async def test_a_read_ends_within_limits(fault: str, server: Faulty) -> None:
    server.fault = fault
    files = open_filesystem(parse_address("az://maps/p"), LIMITS)
    try:
        async with asyncio.timeout(_LONGEST_S):
            with pytest.raises(InaccessibleError) as raised:
                await asyncio.to_thread(files.get, parse_address("az://maps/p/a"), 0, 1000)
        assert raised.value.may_pass
    finally:
        files.close()


async def test_a_name_that_is_not_found_in_mid_run_may_pass(server: Faulty) -> None:
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    async with open_service_store("az://maps/p", am.Settings(s3=LIMITS)) as store:
        verdict = store.client.judge_error(unknown)
        assert (verdict.certain, verdict.may_pass) == (True, False)
        with pytest.raises(TransientError):
            await store.put("p/a.png", b"pixels")  # the answer has no checksum
        verdict = store.client.judge_error(unknown)
        assert (verdict.certain, verdict.may_pass, verdict.retry) == (False, True, True)


async def test_cancelling_a_put_leaves_no_connection(server: Faulty) -> None:
    server.fault = "no answer"
    async with open_store("az://maps/p", am.Settings()) as store:
        putting = asyncio.create_task(store.put("p/a.png", b"pixels"))
        await asyncio.wait_for(server.met.wait(), _LONGEST_S)
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        await asyncio.wait_for(server.left.wait(), _LONGEST_S)


async def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[str] = []
    listing = b"<EnumerationResults><Blobs /></EnumerationResults>"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(listing), listing))
        writer.close()

    connection = "AccountName=account1;AccountKey=a2V5;DefaultEndpointsProtocol=http;EndpointSuffix=core.invalid"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.sockets[0].getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        async with open_store("az://maps/p", am.Settings()) as store:
            await store.check()
        assert heads[0].startswith("GET http://account1.blob.core.invalid/maps?restype=container&comp=list&")
        assert "\r\nProxy-Authorization: Basic " in heads[0]
        monkeypatch.setenv("no_proxy", "core.invalid")
        async with open_store("az://maps/p", am.Settings()) as store:
            with pytest.raises(StoreError, match=r"there is no server account1\.blob\.core\.invalid"):
                await store.check()
    assert len(heads) == 1
