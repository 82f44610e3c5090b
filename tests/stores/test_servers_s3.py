"""What async-maps asks of an S3 server. To try another one: ``pytest --s3-server NAME`` with this file.

What the server does not honor, according to the table in configs/README.md, is expected to be missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest
from botocore.exceptions import ClientError
from yarl import URL

import async_maps as am
from async_maps.filesystems.addresses import Address
from async_maps.filesystems.presign import presigning
from async_maps.filesystems.s3 import S3Filesystem
from async_maps.settings import Settings
from async_maps.stores import open_store
from async_maps.stores.headers import crc32, md5
from tests.support.names import AWKWARD
from tests.support.s3 import s3_client, upload
from tests.support.server_table import features_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def honors(request: pytest.FixtureRequest) -> Callable[[str], bool]:
    """Return a function that says whether the server honors a feature."""
    features = features_of(request.config.option.s3_server)
    return lambda feature: features[feature] == "yes"


@pytest.fixture
def files() -> Iterator[S3Filesystem]:
    filesystem = S3Filesystem()
    yield filesystem
    filesystem.close()


async def put(bucket: str, key: str, data: bytes, **settings: Any) -> str | None:
    async with open_store(f"s3://{bucket}", Settings(**settings)) as store:
        await store.check()
        return await store.put(key, data)


async def test_put_keeps_the_bytes_and_the_headers(bucket: str) -> None:
    s3 = {"cache_control": "max-age=60", "metadata": {"project": "cars"}}
    await put(bucket, "p/a.png", b"pixels", s3=s3)
    with s3_client() as client:
        found = client.get_object(Bucket=bucket, Key="p/a.png")
        assert found["Body"].read() == b"pixels"
    assert (found["ContentType"], found["CacheControl"], found["Metadata"]) == (
        "image/png", "max-age=60", {"project": "cars"},
    )  # fmt: skip


async def test_create_only_replaces_nothing(bucket: str, honors: Callable[[str], bool]) -> None:
    kind = am.ExistsError if honors("If-None-Match") else am.StoreError
    await put(bucket, "a.png", b"first")
    with pytest.raises(kind):
        await put(bucket, "a.png", b"second", if_exists="error")
    with s3_client() as client:
        assert client.get_object(Bucket=bucket, Key="a.png")["Body"].read() == b"first"


def test_odd_keys_are_listed_read_and_deleted(bucket: str, files: S3Filesystem) -> None:
    keys = {f"p/{name}.png": name.encode() for name in AWKWARD}
    upload(bucket, keys)
    assert {found.key: found.size for found in files.objects(bucket, "p/")} == {
        key: len(data) for key, data in keys.items()
    }
    for key, data in keys.items():
        assert files.get(Address("s3", bucket, key), 0, 1000).data == data
    assert files.delete(bucket, [*keys]) == {}
    assert list(files.objects(bucket, "")) == []


def test_a_range_is_a_part_of_the_object(bucket: str, files: S3Filesystem) -> None:
    upload(bucket, {"a": bytes(range(100))})
    found = files.get(Address("s3", bucket, "a"), 10, 5)
    assert (bytes(found.data), found.size) == (bytes(range(10, 15)), 100)
    assert files.get(Address("s3", bucket, "a"), 100, 5).size == 100


def test_a_missing_object_is_not_found(bucket: str, files: S3Filesystem) -> None:
    assert files.find(f"s3://{bucket}/none") is None
    with pytest.raises(FileNotFoundError):
        files.get(Address("s3", bucket, "none"), 0, 1)


async def test_a_presigned_url_reads_the_object_and_a_changed_one_does_not(
    bucket: str, honors: Callable[[str], bool]
) -> None:
    await put(bucket, "a b+é.png", b"pixels")
    with presigning(1) as presigned:
        url = presigned(f"s3://{bucket}/a b+é.png")
    wrong = f"{url[:-1]}{'0' if url[-1] != '0' else '1'}"
    async with aiohttp.ClientSession() as web:
        async with web.get(URL(url, encoded=True)) as answer:
            assert (answer.status, await answer.read()) == (200, b"pixels")
        async with web.get(URL(wrong, encoded=True)) as answer:
            assert (answer.status == 403) == honors("wrong signature refused")


def test_a_copy_keeps_the_metadata(bucket: str) -> None:
    with s3_client() as client:
        client.put_object(Bucket=bucket, Key="a", Body=b"pixels", ContentType="image/png", Metadata={"project": "cars"})
        client.copy_object(Bucket=bucket, Key="b", CopySource={"Bucket": bucket, "Key": "a"})
        found = client.head_object(Bucket=bucket, Key="b")
    assert (found["ContentType"], found["Metadata"], found["ContentLength"]) == ("image/png", {"project": "cars"}, 6)


@pytest.mark.parametrize(
    ("feature", "wrong"),
    [
        ("wrong CRC32 refused", {"ChecksumCRC32": crc32(b"other")}),
        ("wrong MD5 refused", {"ContentMD5": md5(b"other")}),
    ],
)
def test_a_wrong_checksum_is_refused(
    feature: str, wrong: dict[str, str], bucket: str, honors: Callable[[str], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3_client() as client:
        try:
            client.put_object(Bucket=bucket, Key="a", Body=b"pixels", **wrong)
        except ClientError as error:
            refused = 400 <= error.response["ResponseMetadata"]["HTTPStatusCode"] < 500
        else:
            refused = False
    assert refused == honors(feature)


def test_a_run_and_verify_agree(bucket: str, tmp_path: Any) -> None:
    maps = [(name, np.eye(4)) for name in ("a", "b c", "d/é")]
    manifest = tmp_path / "m.sqlite"
    assert am.run(maps, f"s3://{bucket}/p", settings=Settings(workers=0), manifest=manifest).uploaded == 3
    assert am.verify_locators(manifest, deep=True).is_clean
