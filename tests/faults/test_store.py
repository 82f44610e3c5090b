"""With a store that fails, every map is uploaded, or the run reports which was not and why."""

from __future__ import annotations

import asyncio
import io
import time
from typing import TYPE_CHECKING, Any

import aioboto3
import numpy as np
import pytest
from PIL import Image

import async_maps as am
from async_maps.manifest.manifest import Manifest
from tests.support.chaos import FAULTS, chaos
from tests.support.leftovers import leaves_nothing
from tests.support.maps import npy, random_map
from tests.support.s3 import upload
from tests.support.s3_proxy import Refusal, counting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from numpy.typing import NDArray

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SHAPE = (12, 16)
PATIENT = am.S3Settings(read_timeout_s=5.0)


def maps_of(count: int) -> list[tuple[str, NDArray[np.float32]]]:
    return [(f"{index % 7}/{index:05}", random_map(index, SHAPE)) for index in range(count)]


async def objects_of(bucket: str, endpoint: str) -> dict[str, bytes]:
    """Return every object of a bucket, read without the proxy."""
    found: dict[str, bytes] = {}
    async with aioboto3.Session().client("s3", endpoint_url=endpoint) as client:
        keys: list[str] = []
        async for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            keys += [entry["Key"] for entry in page.get("Contents", [])]

        async def read(mine: list[str]) -> None:
            for key in mine:
                answer = await client.get_object(Bucket=bucket, Key=key)
                found[key] = await answer["Body"].read()

        await asyncio.gather(*(read(keys[start::8]) for start in range(8)))
    return found


async def assert_all_there(maps: list[tuple[str, NDArray[np.float32]]], bucket: str, server: S3Server) -> None:
    found = await objects_of(bucket, server.endpoint_url)
    assert set(found) == {f"p/{name}.png" for name, _ in maps}
    for name, array in maps:
        with Image.open(io.BytesIO(found[f"p/{name}.png"])) as image:
            np.testing.assert_array_equal(np.asarray(image.convert("RGBA")), am.colorize_activation_map(array))


@pytest.mark.parametrize(
    "count",
    [200, pytest.param(5_000, marks=[pytest.mark.long, pytest.mark.timeout(1_200)])],
)
async def test_faults_in_a_quarter_of_all_puts_lose_no_map(
    count: int, bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = maps_of(count)
    with chaos(s3, monkeypatch, seed=count, rate=0.25) as proxy:
        async with am.Pipeline(f"s3://{bucket}/p", settings=am.Settings(workers=1, s3=PATIENT)) as pipeline:
            report = await pipeline.run(maps, manifest=tmp_path / "m.sqlite")
    assert (report.uploaded, report.failed) == (count, 0)
    assert report.statistics is not None
    assert report.statistics.retries > 0.1 * count
    assert set(proxy.counts) >= {*FAULTS, "none"}
    with Manifest(tmp_path / "m.sqlite", read_only=True) as manifest:
        assert manifest.counts() == {"done": count}
    await assert_all_there(maps, bucket, s3)
    print(f"{proxy.faults:,} of {sum(proxy.counts.values()):,} PUTs broken, 0 of {count:,} maps lost")  # noqa: T201  # README's


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("client", ["direct", "sdk"])
async def test_each_fault_is_survived_by_both_clients(
    kind: str, client: Any, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = maps_of(12)
    settings = am.Settings(workers=0, s3=am.S3Settings(client=client, read_timeout_s=5.0))
    with chaos(s3, monkeypatch, seed=3, rate=0.4, kinds=(kind,)) as proxy:
        async with am.Pipeline(f"s3://{bucket}/p", settings=settings) as pipeline:
            report = await pipeline.run(maps)
    assert (report.uploaded, report.failed) == (12, 0)
    assert proxy.faults
    await assert_all_there(maps, bucket, s3)


@pytest.mark.parametrize("if_exists", ["skip", "error"])
async def test_a_retry_accepts_the_object_of_its_lost_attempt(
    if_exists: Any, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = maps_of(30)
    settings = am.Settings(workers=0, if_exists=if_exists, s3=PATIENT)
    with chaos(s3, monkeypatch, seed=1, rate=0.3, kinds=("reset after the body", "truncated answer")) as proxy:
        async with am.Pipeline(f"s3://{bucket}/p", settings=settings) as pipeline:
            report = await pipeline.run(maps)
    assert (report.uploaded, report.failed) == (30, 0)
    assert proxy.faults
    await assert_all_there(maps, bucket, s3)


# A store that is down -----------------------------------------------------------------------------------------------


async def test_a_store_that_goes_down_ends_the_run(
    bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = maps_of(60)
    settings = am.Settings(workers=0, concurrency=8, s3=am.S3Settings(give_up_s=0.8, read_timeout_s=5.0))

    async def source() -> AsyncIterator[tuple[str, NDArray[np.float32]]]:
        for number, pair in enumerate(maps):
            if number == 30:
                while pipeline.statistics().uploaded < 20:  # noqa: ASYNC110  # bounded by the test's time-out
                    await asyncio.sleep(0.01)
                patch.setattr("async_maps.stores.s3.S3Store._put", refused)
            yield pair

    async def refused(*_: Any) -> Any:
        raise ConnectionResetError("connection reset")

    with monkeypatch.context() as patch:
        async with am.Pipeline(f"s3://{bucket}/p", settings=settings) as pipeline:
            with pytest.raises(
                am.StoreError, match=r"has accepted nothing for \d s: .*run the same command again"
            ) as raised:
                await pipeline.run(source(), manifest=tmp_path / "m.sqlite")
    assert not isinstance(raised.value, am.ObjectError)
    # The failure of the store is not a failure of any map.
    assert raised.value.report.failed == 0
    async with am.Pipeline(f"s3://{bucket}/p", settings=settings) as pipeline:
        again = await pipeline.run(maps, manifest=tmp_path / "m.sqlite")
    assert (again.uploaded, again.failed) == (60, 0)  # arrays have no fingerprint, so none is skipped
    await assert_all_there(maps, bucket, s3)


# Existing objects ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["s3", "files", "memory"])
async def test_if_exists_skip_and_error_keep_existing_objects(place: str, bucket: str, tmp_path: Path) -> None:
    destination: str | Path = {"s3": f"s3://{bucket}/p", "files": tmp_path / "out", "memory": "memory://p"}[place]  # type: ignore[assignment]
    first, second = maps_of(4), [(name, 1 - array) for name, array in maps_of(2)]
    async with am.Pipeline(destination, settings=am.Settings(workers=0, if_exists="skip")) as pipeline:
        assert (await pipeline.run(first)).uploaded == 4
        same = await pipeline.run(first)
        assert (same.uploaded, same.failed) == (4, 0)
        other = await pipeline.run(second)
        assert (other.uploaded, other.failed) == (0, 2)
        assert all("another" in failure.reason and "not replaced" in failure.reason for failure in other.failures)
    if place == "memory":
        return  # each pipeline has its own memory
    async with am.Pipeline(destination, settings=am.Settings(workers=0, if_exists="error")) as pipeline:
        report = await pipeline.run(first)
        assert (report.uploaded, report.failed) == (0, 4)
        assert all("already exists" in failure.reason for failure in report.failures)
    async with am.Pipeline(destination, settings=am.Settings(workers=0)) as pipeline:
        assert (await pipeline.run(second)).uploaded == 2


async def test_one_of_many_concurrent_creates_succeeds(bucket: str) -> None:
    settings = am.Settings(workers=0, if_exists="error")
    async with am.Pipeline(f"s3://{bucket}/p", settings=settings) as pipeline:
        await pipeline.put("first", random_map(0))
        puts = await asyncio.gather(
            *(pipeline.put("one", random_map(index)) for index in range(16)), return_exceptions=True
        )
    assert sum(isinstance(put, am.Receipt) for put in puts) == 1
    assert sum(isinstance(put, am.MapFailedError) for put in puts) == 15


# Credentials --------------------------------------------------------------------------------------------------------


async def test_credentials_that_expire_during_a_run_are_refreshed(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A credential process whose keys expire after seconds; each call is counted.
    calls = tmp_path / "calls"
    script = tmp_path / "credentials.sh"
    script.write_text(
        f"#!/bin/sh\necho x >> {calls}\n"
        f'printf \'{{"Version": 1, "AccessKeyId": "{s3.access_key}", "SecretAccessKey": "{s3.secret_key}", '
        f'"SessionToken": "", "Expiration": "%s"}}\' "$(date -u -d "+2 seconds" +%Y-%m-%dT%H:%M:%SZ)"\n'
    )
    script.chmod(0o700)
    config = tmp_path / "config"
    config.write_text(f"[default]\ncredential_process = {script}\nregion = us-east-1\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    async with am.Pipeline(f"s3://{bucket}/p", settings=am.Settings(workers=0)) as pipeline:
        for index in range(1000):
            await pipeline.put(f"{index}", random_map(index))
            if len(calls.read_text().split()) > 2:
                return
            await asyncio.sleep(0.1)
    pytest.fail("the credentials were not asked for again")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ExpiredToken", "the session token has expired; run the command again with a new one"),
        ("RequestTimeTooSkewed", "this machine's clock is wrong"),
        ("SignatureDoesNotMatch", "the secret key is wrong"),
    ],
)
async def test_a_refusal_that_concerns_every_map_ends_the_run(
    code: str, said: str, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    detail: Any = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": 403}}

    async def refused(*_: Any) -> Any:
        raise ClientError(detail, "PutObject")

    async with am.Pipeline(f"s3://{bucket}/p", settings=am.Settings(workers=0)) as pipeline:
        await pipeline.put("a", random_map(1))
        monkeypatch.setattr("async_maps.stores.s3.S3Store._put", refused)
        with pytest.raises(am.StoreError, match=said):
            await pipeline.run(maps_of(10))


# All kinds of requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(400, marks=pytest.mark.slow),
        pytest.param(12_000, marks=[pytest.mark.long, pytest.mark.timeout(1_800)]),
    ],
)
def test_faults_in_a_quarter_of_all_requests_fail_no_map(
    count: int, bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(bucket, {f"maps/{name}.npy": npy(array) for name, array in maps_of(count)})
    manifest = tmp_path / "m.sqlite"
    settings = am.Settings(workers=1, s3=am.S3Settings(read_timeout_s=5.0))
    # A false answer to a GET cannot be told from that of an object with other bytes.
    kinds = tuple(kind for kind in FAULTS if not kind.startswith("200"))
    with chaos(s3, monkeypatch, seed=count, rate=0.25, methods="GET PUT HEAD", kinds=kinds) as proxy:
        report = am.run(f"s3://{bucket}/maps/", f"s3://{bucket}/p", settings=settings, manifest=manifest)
    assert (report.uploaded, report.failed) == (count, 0), report.failures
    assert proxy.faults > 0.2 * count
    verification = am.verify_locators(manifest, settings=settings, deep=True)
    assert (verification.is_clean, verification.right) == (True, count)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(300, marks=pytest.mark.slow),
        pytest.param(10_000, marks=[pytest.mark.long, pytest.mark.timeout(1_800)]),
    ],
)
def test_one_refused_object_among_many_is_the_only_failure(
    count: int, bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maps: Path
) -> None:
    for name, array in maps_of(count):
        (maps / name).parent.mkdir(exist_ok=True)
        np.save(maps / name, array)
    refused = f"{count // 2 % 7}/{count // 2:05}"
    with counting(s3, monkeypatch) as proxy:
        proxy.refuse = lambda method, path, _: (
            Refusal(403, "AccessDenied", "no") if method == "PUT" and f"/{refused}.png" in path else None
        )
        for _ in range(2):
            report = am.run(maps, f"s3://{bucket}/p", settings=am.Settings(workers=1), manifest=tmp_path / "m.sqlite")
            assert report.exit_code == 1
            assert [failure.name for failure in report.failures] == [refused]
    assert (report.uploaded, report.skipped, report.failed) == (0, count - 1, 1)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(10, marks=pytest.mark.slow),
        pytest.param(60, marks=pytest.mark.long),
        pytest.param(250, marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_an_outage_in_mid_run_fails_no_map(
    seconds: int, bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(s3, monkeypatch) as proxy:
        ends_at: list[float] = []

        def refuse(method: str, _path: str, _query: str) -> Refusal | None:
            puts = sum(asked.method == "PUT" for asked in proxy.asked)
            if method != "PUT" or puts < 50:
                return None
            if not ends_at:
                ends_at.append(time.monotonic() + seconds)
            return Refusal(0) if time.monotonic() < ends_at[0] else None

        proxy.refuse = refuse
        report = am.run(
            maps_of(200), f"s3://{bucket}/p", settings=am.Settings(workers=0), manifest=tmp_path / "m.sqlite"
        )
    assert (report.exit_code, report.uploaded, report.failed) == (0, 200, 0)
