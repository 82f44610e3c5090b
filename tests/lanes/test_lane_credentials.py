"""Lanes use the credentials of their parent, which alone asks for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.filesystems.credentials import shared_credentials
from tests.support.aws_services import serving
from tests.support.maps import random_map
from tests.support.pipelines import lane_pids

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server


@pytest.mark.parametrize("expired", [False, True], ids=["valid", "expired"])
async def test_all_lanes_ask_for_credentials_once(
    expired: bool, s3: S3Server, bucket: str, maps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(40):
        np.save(maps / f"{i}.npy", random_map(i))
    (tmp_path / "home").mkdir()
    with serving(s3, tmp_path / "home") as services:
        services.use("assume_role", monkeypatch)
        shared = shared_credentials()
        settings = am.Settings(workers=0, processes=2)
        async with am.Pipeline(f"s3://{bucket}/x", settings=settings) as pipeline:
            assert services.count() == 1
            if expired:
                # The lanes get none with the first message, and have to ask.
                shared._found = shared.found._replace(expires_at=0.0)
            report = await pipeline.run(maps)
            assert len(lane_pids()) == 2
        assert (report.uploaded, report.failed) == (40, 0)
        assert services.count() == 1 + expired
