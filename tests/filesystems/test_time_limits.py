"""No request waits without end, whatever the other side of its connection does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from async_maps.errors import TransientError
from async_maps.settings import S3Settings, Settings
from async_maps.stores import open_store
from tests.support.faulty_server import FAULTS, Faulty, faulty
from tests.support.leftovers import leaves_nothing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SOON: dict[str, Any] = {"read_timeout_s": 0.3, "give_up_s": 0.6, "max_attempts": 1}
LARGE = bytes(8 * 2**20)
"""More than the buffers of both sides hold."""
_TOO_LONG_S = 10.0


@pytest.fixture
async def server(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Faulty]:
    async with asyncio.timeout(_TOO_LONG_S), faulty(monkeypatch) as running:
        yield running
        async with asyncio.timeout(_TOO_LONG_S):
            await running.left.wait()
    assert asyncio.all_tasks() == {asyncio.current_task()}


def settings(**more: Any) -> Settings:
    return Settings(s3=S3Settings(**SOON, **more))


@pytest.mark.parametrize("client", ["direct", "sdk"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_put_ends_with_a_transient_error(fault: str, client: Any, server: Faulty) -> None:
    async with open_store("s3://bucket/p", settings(client=client)) as store:
        if client == "direct":
            await store.put("p/first.png", b"x")
        server.fault = fault
        with pytest.raises(TransientError, match=r"no answer from http://127\.0\.0\.1:\d+: .*bytes? ha"):
            await store.put("p/a.png", LARGE)
