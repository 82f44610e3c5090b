"""A slow link is no fault: uploads whose bytes move are not ended."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

import async_maps as am
from async_maps.stores import open_store
from tests.support.link import linked
from tests.support.scripted_server import Scripted, server

if TYPE_CHECKING:
    from typing import Any

__all__ = ["server"]


@pytest.mark.parametrize("client", ["direct", "sdk"])
async def test_an_upload_whose_bytes_move_does_not_time_out(
    client: Any, server: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = am.Settings(s3=am.S3Settings(client=client, read_timeout_s=0.3))
    url = os.environ["AWS_ENDPOINT_URL"]
    async with linked(url, monkeypatch) as link, open_store("s3://bucket", settings) as store:
        await store.put("first.png", b"x")
        link.bytes_per_s = 2**20
        # Each of them takes three times the time-out.
        await asyncio.gather(*(store.put(f"{i}.png", bytes(2**18)) for i in range(4)))
    assert len(server.sdk) + len(server.direct) == 5
    assert len(server.bodies) == 5
