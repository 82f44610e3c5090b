"""Behavior of the S3 store only."""

from __future__ import annotations

import asyncio
import base64
import socket
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from aioboto3 import Session
from botocore.exceptions import ClientError

from async_maps.batch import adry_run
from async_maps.errors import ObjectError, SettingsError, SourceError, StoreError, TransientError
from async_maps.keys import KeyTemplate
from async_maps.settings import S3Settings, Settings
from async_maps.stores import open_store
from async_maps.stores.s3 import S3Store
from tests.stores.contract import Opened, StoreContract
from tests.support.names import AWKWARD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from async_maps.demo.seaweed import S3Server

make_key = KeyTemplate("{name}.png").key


class TestS3Store(StoreContract):
    prefix = "pre/fix"

    @pytest.fixture
    async def opened(self, bucket: str) -> AsyncIterator[Opened]:
        async with Session().client("s3") as client, open_store(f"s3://{bucket}/pre/fix/", Settings()) as store:

            async def read(key: str) -> bytes:
                answer = await client.get_object(Bucket=bucket, Key=key)
                body: bytes = await answer["Body"].read()
                return body

            yield Opened(store, read)


@pytest.mark.parametrize("place", ["s3://{bucket}/p", "memory://p", "{tmp_path}"])
async def test_a_locator_begins_with_the_destination(place: str, s3: S3Server, tmp_path: Path) -> None:
    async with open_store(place.format(bucket="bucket", tmp_path=tmp_path), Settings()) as store:
        for name in AWKWARD:
            locator = store.locator(make_key(store.prefix, name))
            assert locator.startswith(f"{store.destination}/")
            assert locator.endswith(".png")


@pytest.mark.parametrize(
    ("place", "destination", "prefix", "locator"),
    [
        ("s3://bucket", "s3://bucket", "", "s3://bucket/a b.png"),
        ("s3://bucket/", "s3://bucket", "", "s3://bucket/a b.png"),
        ("s3://bucket/p", "s3://bucket/p", "p", "s3://bucket/p/a b.png"),
        ("s3://bucket//p/q//", "s3://bucket/p/q", "p/q", "s3://bucket/p/q/a b.png"),
        ("memory://", "memory://", "", "memory://a b.png"),
        ("memory://p/", "memory://p", "p", "memory://p/a b.png"),
        ("/out", "file:///out", "", "file:///out/a%20b.png"),
        ("/out/../o t/", "file:///o%20t", "", "file:///o%20t/a%20b.png"),
        (Path("/out"), "file:///out", "", "file:///out/a%20b.png"),
        ("file:///out", "file:///out", "", "file:///out/a%20b.png"),
        ("file:///o%20t/%25", "file:///o%20t/%25", "", "file:///o%20t/%25/a%20b.png"),
        ("file://localhost/out", "file:///out", "", "file:///out/a%20b.png"),
        ("file:///what?/no#w", "file:///what%3F/no%23w", "", "file:///what%3F/no%23w/a%20b.png"),
    ],
)
async def test_a_destination_has_one_form(
    s3: S3Server, place: str | Path, destination: str, prefix: str, locator: str
) -> None:
    async with open_store(place, Settings()) as store:
        assert (store.destination, store.prefix) == (destination, prefix)
        assert store.locator(make_key(store.prefix, "a b")) == locator


async def _head(bucket: str, key: str) -> dict[str, Any]:
    async with Session().client("s3") as client:
        return dict(await client.head_object(Bucket=bucket, Key=key))


async def test_an_object_has_only_the_png_content_type_by_default(bucket: str) -> None:
    async with open_store(f"s3://{bucket}", Settings()) as store:
        await store.put("a.png", b"pixels")
    head = await _head(bucket, "a.png")
    assert head["ContentType"] == "image/png"
    assert head["ContentLength"] == 6
    assert head["Metadata"] == {}
    assert "CacheControl" not in head
    # Trailing checksums leave "aws-chunked" here on some stores.
    assert "ContentEncoding" not in head


async def test_the_headers_of_the_settings_are_sent(bucket: str) -> None:
    settings = Settings(
        s3={
            "cache_control": "public, max-age=86400, immutable",
            "metadata": {"run": "7", "model-name": "ResNet 50 (v2)  x"},
            "storage_class": "STANDARD_IA",
            "server_side_encryption": "AES256",
            "acl": "bucket-owner-full-control",
            "tagging": {"team": "x & y=z"},
        }
    )
    async with open_store(f"s3://{bucket}", settings) as store:
        await store.put("a.png", b"pixels")
    async with Session().client("s3") as client:
        tags = await client.get_object_tagging(Bucket=bucket, Key="a.png")
    assert tags["TagSet"] == [{"Key": "team", "Value": "x & y=z"}]
    head = await _head(bucket, "a.png")
    assert head["CacheControl"] == "public, max-age=86400, immutable"
    assert {name.lower(): text for name, text in head["Metadata"].items()} == {
        "run": "7",
        "model-name": "ResNet 50 (v2)  x",
    }
    assert head["StorageClass"] == "STANDARD_IA"
    assert head["ServerSideEncryption"] == "AES256"


@pytest.mark.seaweedfs
async def test_an_upload_is_one_signed_put_without_a_trailer(bucket: str) -> None:
    settings = Settings(
        s3={
            "server_side_encryption": "aws:kms",
            "kms_key_id": "arn:aws:kms:x",
            "storage_class": "GLACIER",
            "max_attempts": 1,
        }
    )
    async with open_store(f"s3://{bucket}/p", settings) as store:
        assert isinstance(store, S3Store)
        sent: list[Any] = []
        store._client.meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.append(request))
        with pytest.raises(StoreError):  # the server has no such key
            await store.put("p/a.png", b"pixels")
    headers = {
        name.lower(): str(value, "ascii") if isinstance(value, bytes) else value
        for name, value in sent[0].headers.items()
    }
    assert sent[0].method == "PUT"
    assert headers["content-type"] == "image/png"
    assert headers["x-amz-storage-class"] == "GLACIER"
    assert headers["x-amz-server-side-encryption"] == "aws:kms"
    assert headers["x-amz-server-side-encryption-aws-kms-key-id"] == "arn:aws:kms:x"
    assert headers["x-amz-checksum-crc32"] == base64.b64encode(zlib.crc32(b"pixels").to_bytes(4, "big")).decode()
    assert headers["authorization"].startswith("AWS4-HMAC-SHA256 ")
    assert "content-encoding" not in headers
    assert "x-amz-trailer" not in headers
    assert "async-maps" in headers["user-agent"]


@pytest.mark.seaweedfs
async def test_the_server_refuses_a_body_with_another_checksum(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(f"s3://{bucket}", Settings(s3=S3Settings(client="sdk"))) as store:
        assert isinstance(store, S3Store)
        await store.put("first.png", b"pixels")
        put_object = store._client.put_object

        async def tampered(**arguments: Any) -> Any:
            return await put_object(**arguments | {"Body": b"pixelz"})

        monkeypatch.setattr(store._client, "put_object", tampered)
        with pytest.raises(ObjectError, match=r"refused with BadDigest|checksum"):
            await store.put("a.png", b"pixels")
    with pytest.raises(ClientError, match="Not Found"):
        await _head(bucket, "a.png")


async def test_check_reports_a_missing_bucket(s3: S3Server) -> None:
    async with open_store("s3://no-such-bucket/p", Settings()) as store:
        with pytest.raises(StoreError, match=r"^s3://no-such-bucket/p: the bucket does not exist$"):
            await store.check()
        with pytest.raises(StoreError, match=r"^s3://no-such-bucket/p: refused with NoSuchBucket: the bucket does not"):
            await store.put("p/a.png", b"pixels")


@pytest.mark.seaweedfs
@pytest.mark.parametrize(
    ("variable", "sentence"),
    [
        ("AWS_SECRET_ACCESS_KEY", "refused with SignatureDoesNotMatch: the secret key is wrong"),
        ("AWS_ACCESS_KEY_ID", "refused with InvalidAccessKeyId: the access key does not exist there"),
    ],
)
async def test_the_first_put_reports_wrong_credentials(
    bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, "wrong" * 8)
    async with open_store(f"s3://{bucket}", Settings()) as store:
        await store.check()
        with pytest.raises(StoreError) as refusal:
            await store.put("a.png", b"pixels")
    assert str(refusal.value) == f"s3://{bucket}: {sentence}"
    assert not isinstance(refusal.value, ObjectError)


async def test_missing_credentials_are_reported_with_advice(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    expected = "no AWS credentials found: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    async with open_store(f"s3://{bucket}", Settings()) as store:
        for attempt in (store.check(), store.put("a.png", b"pixels")):
            with pytest.raises(StoreError, match=f"^s3://{bucket}: {expected}$") as refusal:
                await attempt
            assert not isinstance(refusal.value, ObjectError)


async def test_expired_credentials_are_reported_with_advice(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("async_maps.stores.s3._CHECK_WAITS_S", ())
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    monkeypatch.setenv("AWS_CREDENTIAL_EXPIRATION", "2020-01-02T03:04:05Z")
    async with open_store(f"s3://{bucket}", Settings()) as store:
        for attempt in (store.check(), store.put("a.png", b"pixels")):
            with pytest.raises(StoreError, match="the AWS credentials have expired: sign in again, or set new ones"):
                await attempt


async def test_a_missing_secret_key_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with open_store(f"s3://{bucket}", Settings()) as store:
        with pytest.raises(StoreError, match="missing: AWS_SECRET_ACCESS_KEY") as error:
            await store.check()
    assert not error.value.may_pass


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("AWS_PROFILE", "nobody", "The config profile (nobody) could not be found"),
        ("AWS_ENDPOINT_URL", "no url", "Invalid endpoint: no url"),
    ],
)
async def test_an_invalid_aws_configuration_is_refused_on_open(
    bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, sentence: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as refusal:
        async with open_store(f"s3://{bucket}", Settings()):
            pass
    assert str(refusal.value) == f"the AWS configuration cannot be used: {sentence}"


async def test_a_refused_connection_is_reported(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refuses
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        async with open_store("s3://bucket", Settings(s3={"max_attempts": 2})) as store:
            for attempt, error in ((store.check(), StoreError), (store.put("a.png", b"pixels"), TransientError)):
                with pytest.raises(error, match=r"^s3://bucket: Could not connect to the endpoint URL: "):
                    await attempt


async def test_check_ends_at_the_read_timeout(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    gone = asyncio.Event()
    server = await asyncio.start_server(never, "127.0.0.1", 0)
    async with server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        patience = {"max_attempts": 1, "read_timeout_s": 0.3}
        async with open_store("s3://bucket", Settings(s3=patience)) as store:
            with pytest.raises(StoreError, match="no byte has moved for"):
                await store.check()
        gone.set()


@pytest.mark.seaweedfs
async def test_a_refusal_after_a_success_concerns_one_object(bucket: str, s3: S3Server) -> None:
    async with open_store(f"s3://{bucket}", Settings(s3={"max_attempts": 1})) as store:
        await store.put("a.png", b"pixels")
        with pytest.raises(ObjectError, match=rf"^s3://{bucket}: refused with "):
            await store.put("x" * 2000, b"pixels")
        await store.put("b.png", b"pixels")
        async with Session().client("s3") as client:
            for key in ("a.png", "b.png"):
                await client.delete_object(Bucket=bucket, Key=key)
            await client.delete_bucket(Bucket=bucket)
        with pytest.raises(StoreError, match="the bucket does not exist") as refusal:
            await store.put("c.png", b"pixels")
        assert not isinstance(refusal.value, ObjectError)


async def test_the_endpoint_of_an_aws_profile_is_used(
    bucket: str, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    config = tmp_path / "config"
    config.write_text(
        f"[profile maps]\nendpoint_url = {s3.endpoint_url}\nregion = us-east-1\n"
        f"aws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret_key}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_PROFILE", "maps")
    async with open_store(f"s3://{bucket}", Settings()) as store:
        await store.check()
        assert await store.put("a.png", b"pixels")


@pytest.mark.parametrize("with_token", [False, True])
async def test_no_secret_is_in_any_message_or_repr(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, with_token: bool
) -> None:
    secret, token = "s3cr3t" * 7, "t0k3n" * 9
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    if with_token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    shown = [repr(Settings()), repr(s3)]
    for place in (f"s3://{bucket}", "s3://no-such-bucket"):
        async with open_store(place, Settings(s3={"max_attempts": 1})) as store:
            shown += [repr(store), str(vars(store)), store.destination]
            for attempt in (store.check(), store.put("a.png", b"pixels")):
                try:
                    await attempt
                except StoreError as error:
                    chain = [error, error.__cause__]
                    shown += [
                        text for link in chain for text in (str(link), repr(link), repr(getattr(link, "__dict__", "")))
                    ]
    assert any("refused with" in text for text in shown)
    for hidden in (secret, token, s3.secret_key):
        assert not any(hidden in text for text in shown)


@pytest.mark.parametrize("endpoint", ["http://user:s3cr3t@127.0.0.1:1", "http://127.1:1"])
async def test_an_endpoint_that_can_never_answer_must_be_changed(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(SettingsError, match="the endpoint"):
        async with open_store("s3://bucket/p", Settings()) as store:
            await store.check()
    with pytest.raises(SourceError, match="the endpoint") as caught:
        await adry_run("s3://bucket/maps", tmp_path)
    assert not caught.value.may_pass
