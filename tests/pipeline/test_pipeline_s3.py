"""The pipeline with a destination in S3."""

from __future__ import annotations

import aioboto3
import numpy as np
import pytest

import async_maps as am
from async_maps.stores.s3 import S3Store
from tests.support.leftovers import leaves_nothing
from tests.support.maps import decode, random_map

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)


async def test_put_returns_the_locator_and_etag_of_the_object(bucket: str) -> None:
    activation_map = random_map(2)
    async with am.Pipeline(f"s3://{bucket}/some/prefix/") as pipeline:
        receipt = await pipeline.put("a b/ü+%?#.cam", activation_map)
    assert receipt.locator == f"s3://{bucket}/some/prefix/a b/ü+%?#.cam.png"
    async with aioboto3.Session().client("s3") as client:
        answer = await client.get_object(Bucket=bucket, Key="some/prefix/a b/ü+%?#.cam.png")
        data = await answer["Body"].read()
    assert answer["ContentType"] == "image/png"
    assert receipt.etag == answer["ETag"].strip('"')
    assert np.array_equal(decode(data), am.colorize_activation_map(activation_map))


@pytest.mark.seaweedfs
async def test_one_refused_object_does_not_end_a_run(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = S3Store.put

    async def refused(self: S3Store, key: str, data: bytes) -> str | None:
        if key == "x/0.png":
            key = "x/" + "k" * 2000
        return await original(self, key, data)

    monkeypatch.setattr(S3Store, "put", refused)
    async with am.Pipeline(f"s3://{bucket}/x", settings=am.Settings(workers=0, concurrency=1)) as pipeline:
        report = await pipeline.run((f"{i}", random_map(i)) for i in range(5))
    assert (report.uploaded, report.failed) == (4, 1)


@pytest.mark.parametrize(
    ("destination", "error"),
    [
        ("s3://no-such-bucket/x", am.StoreError),
        ("s3://b", am.SettingsError),
        ("ftp://bucket/x", am.SettingsError),
        ("s3://bucket/a/../b", am.SettingsError),
        ("", am.SettingsError),
        ("/proc/version/x", am.StoreError),
    ],
)
@pytest.mark.usefixtures("s3")
async def test_an_unusable_destination_is_refused_on_entering(destination: str, error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        async with am.Pipeline(destination, settings=am.Settings(workers=1)):
            pytest.fail("entered")
    assert not isinstance(caught.value, BaseExceptionGroup)
