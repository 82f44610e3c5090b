"""No request waits without end, whatever the other side of its connection does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from async_maps.errors import ObjectError, TransientError
from async_maps.settings import S3Settings, Settings
from async_maps.stores import open_store
from tests.support.faulty_server import EARLY, FAULTS, Faulty, faulty
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
        if running.fault not in EARLY:
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
        with pytest.raises(TransientError, match=r"^s3://bucket/p: (no byte has|too few bytes have) moved"):
            await store.put("p/a.png", LARGE)


@pytest.mark.parametrize("client", ["direct", "sdk"])
@pytest.mark.parametrize("early", EARLY)
async def test_an_answer_before_the_body_is_read_is_the_answer(early: str, client: Any, server: Faulty) -> None:
    async with open_store("s3://bucket/p", settings(client=client)) as store:
        if client == "direct":
            await store.put("p/first.png", b"x")
        server.fault = early
        with pytest.raises(ObjectError, match="EntityTooLarge"):
            await store.put("p/a.png", LARGE)


async def test_no_put_waits_for_100_continue(server: Faulty) -> None:
    async with open_store("s3://bucket/p", settings(client="sdk")) as store:
        assert await store.put("p/a.png", b"pixels") == "tag"
    assert b"expect" not in server.heads[0].lower()


@pytest.mark.parametrize("fault", ["drips a head", "drips a body", "stalls in a body", "no answer"])
async def test_looking_for_an_object_before_a_put_ends(fault: str, server: Faulty) -> None:
    server.fault, server.of = fault, {"GET"}
    async with open_store("s3://bucket/p", settings().model_copy(update={"if_exists": "skip"})) as store:
        with pytest.raises(TransientError, match=r"^s3://bucket/p: (no byte has|too few bytes have) moved"):
            await store.put("p/a.png", b"pixels")
