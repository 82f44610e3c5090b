"""A network that fails in mid-run is no fault of any map: the run waits, and all maps are stored."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.support.commands import COMMAND, done_rows
from tests.support.link import Link
from tests.support.maps import random_map
from tests.support.network import HERE, NAME, in_own_network

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

COUNT = 400
OUTAGE_S = 12.0
"""Longer than the client remembers an address."""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["the cable is cut", "the name is not found"])
async def test_a_network_that_fails_in_mid_run_fails_no_map(
    fault: str, bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, manifest = tmp_path / "maps", tmp_path / "m.sqlite"
    maps.mkdir()
    for number in range(COUNT):
        np.save(maps / f"{number}.npy", random_map(number, (8, 8)))
    host, _, port = s3.endpoint_url.removeprefix("http://").partition(":")
    link = Link((host, int(port)))
    command = (
        *COMMAND, "run", maps, f"s3://{bucket}/p", "--manifest", manifest, "--workers", 0, "--rate", 40,
        "--s3.read-timeout-s", 2, "--report", tmp_path / "report.json",
    )  # fmt: skip
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{NAME}:{port}")
    with in_own_network(tmp_path / "network", *command) as network:
        serving = await asyncio.start_server(link.serve, host=HERE, port=int(port))
        try:
            while done_rows(str(manifest)) < 10:
                await asyncio.sleep(0.05)
                assert network.process.poll() is None, network.process.communicate()[1]
            if fault == "the cable is cut":
                network.cut()
            else:
                network.name(known=False)
                serving.close()
            # The server forgets its connections. With a cut cable, the run does not hear of it.
            await link.close()
            await asyncio.sleep(OUTAGE_S)
            network.mend()
            network.name()
            if fault != "the cable is cut":
                serving = await asyncio.start_server(link.serve, host=HERE, port=int(port))
            _, told = await asyncio.to_thread(network.process.communicate)
        finally:
            serving.close()
            await link.close()
            await serving.wait_closed()
    assert network.process.returncode == 0, told
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["uploaded"], report["failed"]) == (COUNT, 0)
    assert report["statistics"]["retries"] > 0
