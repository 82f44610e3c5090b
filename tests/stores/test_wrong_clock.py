"""A machine whose clock is off, and a real server that checks the time of signatures."""

from __future__ import annotations

import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import async_maps as am
from async_maps.filesystems.credentials import shared_credentials
from tests.support.aws_services import Services, serving
from tests.support.commands import invoke
from tests.support.exports import read_any
from tests.support.maps import random_map
from tests.support.s3 import upload
from tests.support.s3_proxy import counting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from async_maps.demo.seaweed import S3Server
    from async_maps.filesystems.credentials import SharedCredentials

pytestmark = pytest.mark.seaweedfs
MINUTES = 60.0


@pytest.fixture
def off_by(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[float], SharedCredentials]]:
    """Sets the clock of this machine, as far as signatures go."""
    monkeypatch.chdir(tmp_path)
    # Of this test alone.
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", bucket)
    shared = shared_credentials()

    def set_clock(seconds: float) -> SharedCredentials:
        shared.clock._wall = lambda: time.time() + seconds
        return shared

    yield set_clock
    set_clock(0.0)


def some_maps(count: int) -> Path:
    folder = Path("maps")
    folder.mkdir()
    for i in range(count):
        np.save(folder / f"{i:03}.npy", random_map(i))
    return folder


@pytest.mark.parametrize("client", ["direct", "sdk"])
def test_every_map_is_uploaded_with_a_wrong_clock(
    client: str, off_by: Callable[[float], SharedCredentials], bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    off_by(-20 * MINUTES)
    settings = am.Settings.model_validate({"workers": 0, "s3": {"client": client}})
    report = am.run(some_maps(30), f"s3://{bucket}/x", settings=settings)
    assert (report.uploaded, report.failed) == (30, 0)
    notices = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert len(notices) == 1
    assert notices[0].startswith("this machine's clock is 20 minutes behind the store's")


@pytest.mark.parametrize("client", ["direct", "sdk"])
async def test_a_clock_that_jumps_during_a_run_costs_one_signature(
    client: str,
    off_by: Callable[[float], SharedCredentials],
    s3: S3Server,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = am.Settings.model_validate({"workers": 0, "concurrency": 1, "s3": {"client": client}})
    with counting(s3, monkeypatch) as proxy:
        off_by(0.0)
        held = shared_credentials()
        async with am.Pipeline(f"s3://{bucket}/x", settings=settings) as pipeline:
            for i in range(3):
                await pipeline.put(f"m{i}", random_map(i))
            before = len(proxy.asked)
            held.clock._wall = lambda: time.time() + 20 * MINUTES
            for i in range(3, 8):
                await pipeline.put(f"m{i}", random_map(i))
    assert len(proxy.asked) - before == 5 + 1


def test_reads_lists_and_verify_correct_a_wrong_clock(
    off_by: Callable[[float], SharedCredentials], bucket: str
) -> None:
    folder = some_maps(3)
    assert invoke("run", folder, f"s3://{bucket}/x", "--workers", 0) == 0
    upload(bucket, {f"maps/{path.name}": path.read_bytes() for path in folder.iterdir()})
    shared = off_by(40 * MINUTES)
    for command in (
        ("verify", "async-maps.sqlite", "--deep"),
        ("run", f"s3://{bucket}/maps/*.npy", "out", "--workers", 0, "--manifest", "other.sqlite"),
        ("doctor", f"s3://{bucket}/x", "--quick"),
    ):
        shared.clock.offset_s = 0.0
        shared.clock._corrections = 0
        assert invoke(*command) == 0
        assert round(shared.clock.offset_s / MINUTES) == -40, command


def test_a_presigned_url_is_valid_although_the_clock_is_wrong(
    off_by: Callable[[float], SharedCredentials], bucket: str
) -> None:
    assert invoke("run", some_maps(1), f"s3://{bucket}/maps", "--workers", 0) == 0
    off_by(40 * MINUTES)
    am.export_manifest("async-maps.sqlite", "table.jsonl", presign_hours=1)
    (row,) = read_any(Path("table.jsonl"))
    with urllib.request.urlopen(row["url"], timeout=60) as answer:  # noqa: S310  # a loopback server's
        assert answer.read(4) == b"\x89PNG"


def test_new_credentials_have_not_expired_although_the_clock_is_wrong(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(s3, tmp_path) as services:
        services.use("web_identity", monkeypatch)
        shared = shared_credentials()
        shared.clock._wall = lambda: time.time() + 120 * MINUTES
        report = am.run(some_maps(3), f"s3://{bucket}/x", settings=am.Settings(workers=0))
    assert (report.uploaded, report.failed) == (3, 0)
    assert isinstance(services, Services)
    assert services.count() == 1
