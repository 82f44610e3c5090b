"""A verification that is cancelled does not wait for a store that does not answer."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING

import pytest
from anyio import to_thread

import async_maps as am
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import DESTINATION, make_map, receipt_for, write_run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


@pytest.mark.parametrize("command", ["verify", "repair", "table", "moved"])
async def test_a_store_that_does_not_answer_delays_no_cancellation(
    command: str, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"locator\n{DESTINATION}/a.png\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "sEcReT",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        at = "http://elsewhere" if command == "moved" else endpoint
        write_run(manifest, [receipt_for(make_map("a"))], f"{DESTINATION} at {at}")
        if command == "repair":
            asking = asyncio.create_task(am.arepair_overlays(manifest))
        else:
            place = table if command == "table" else manifest
            asking = asyncio.create_task(am.averify_locators(place))
        connection, _ = await to_thread.run_sync(server.accept)
        with connection:
            await to_thread.run_sync(connection.recv, 1)
            began_at = time.monotonic()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
    assert time.monotonic() - began_at < 10
