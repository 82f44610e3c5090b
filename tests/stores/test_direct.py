"""The direct PUT sends the same request as the SDK, and leaves unusual cases to the SDK."""

from __future__ import annotations

import asyncio
import base64
import os
import zlib
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from aioboto3 import Session
from aiobotocore.awsrequest import AioAWSResponse
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from botocore.compat import HTTPHeaders
from botocore.credentials import ReadOnlyCredentials
from botocore.handlers import add_retry_headers, validate_bucket_name

from async_maps.errors import ObjectError, TransientError
from async_maps.filesystems.aws import client_options
from async_maps.filesystems.clock import Clock
from async_maps.filesystems.credentials import Found, SharedCredentials
from async_maps.filesystems.sessions import AsyncCredentials
from async_maps.settings import S3Settings, Settings
from async_maps.stores import open_store
from async_maps.stores.direct import DirectSession, Plan, Signer
from async_maps.stores.headers import object_headers
from async_maps.stores.s3 import S3Store
from tests.support.leftovers import leaves_nothing
from tests.support.names import AWKWARD
from tests.support.scripted_server import Scripted, server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping


__all__ = ["server"]

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

HEADERS = S3Settings(
    cache_control="public, max-age=86400",
    metadata={"run": "7", "Model": "a b  c", "percent": "%s %"},
    storage_class="STANDARD_IA",
    server_side_encryption="aws:kms",
    kms_key_id="arn:aws:kms:eu-west-1:111122223333:key/x",
)
KEYS = [f"pre/fix/{name}.png" for name in AWKWARD] + ["a//b.png", "/leading.png", "x" * 1000]
MIB = 2**20


def checksum(data: bytes) -> str:
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


# The same request ---------------------------------------------------------------------------------------------------


class Silent:
    """The body of an answer without a server."""

    async def read(self) -> bytes:
        return b""


class Sent(NamedTuple):
    url: str
    headers: dict[str, str]
    body: bytes


@asynccontextmanager
async def sdk(
    monkeypatch: pytest.MonkeyPatch, bucket: str, settings: S3Settings, **options: Any
) -> AsyncIterator[tuple[DirectSession, Any]]:
    """Yield the session of a real client and a function that puts with it. Nothing is sent over the network."""
    sessions: list[DirectSession] = []
    sent: list[Sent] = []

    def session(*arguments: Any, **more: Any) -> DirectSession:
        sessions.append(DirectSession(*arguments, **more))
        return sessions[-1]

    async def answered(_: AIOHTTPSession, request: Any) -> AioAWSResponse:
        headers = {name: v if isinstance(v, str) else v.decode() for name, v in request.headers.items()}
        sent.append(Sent(request.url, headers, request.body.read()))
        return AioAWSResponse(request.url, 200, HTTPHeaders(), Silent())

    monkeypatch.setattr(AIOHTTPSession, "send", answered)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    md5 = options.pop("md5", False)
    given: dict[str, Any] = {**client_options(settings, 4), "http_session_cls": session, "s3": options.pop("s3", None)}
    config = AioConfig(**given)
    async with Session().client("s3", config=config, **options) as client:
        # The headers in which the SDK counts its attempts are not compared.
        client.meta.events.unregister("request-created", add_retry_headers)
        client.meta.events.unregister("before-parameter-build.s3", validate_bucket_name)

        async def put(key: str, data: bytes) -> Sent:
            arguments = object_headers(settings) | {"ContentMD5" if md5 else "ChecksumCRC32": checksum(data)}
            await client.put_object(Bucket=bucket, Key=key, Body=data, **arguments)
            return sent.pop()

        yield sessions[0], put


PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "path": ("bucket", {"endpoint_url": "http://127.0.0.1:9000"}),
    "path below": ("bucket", {"endpoint_url": "https://store.example/s3/gate%20way"}),
    "virtual host": ("bucket", {"region_name": "eu-central-1"}),
    "us-east-1": ("bucket", {"region_name": "us-east-1"}),
    "dots": ("bucket.with.dots", {"region_name": "eu-central-1"}),
    "dual-stack": ("bucket", {"region_name": "eu-central-1", "s3": {"use_dualstack_endpoint": True}}),
    "accelerate": ("bucket", {"region_name": "eu-central-1", "s3": {"use_accelerate_endpoint": True}}),
    "signed payload": ("bucket", {"region_name": "eu-central-1", "s3": {"payload_signing_enabled": True}}),
    "access point": ("arn:aws:s3:us-west-2:123456789012:accesspoint/maps", {"region_name": "us-west-2"}),
    "tenant": ("acme:maps", {"endpoint_url": "http://127.0.0.1:9000"}),
    "Content-MD5": ("bucket", {"endpoint_url": "http://127.0.0.1:9000", "md5": True}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("token", [None, "a/token+="])
@pytest.mark.parametrize("settings", [S3Settings(), HEADERS], ids=["plain", "all headers"])
async def test_the_signed_request_equals_the_sdks(
    place: str, token: str | None, settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket, options = PLACES[place]
    credentials = {"aws_access_key_id": "AKID", "aws_secret_access_key": "secret/key", "aws_session_token": token}
    async with sdk(monkeypatch, bucket, settings, **options, **credentials) as (session, put):
        await put("first.png", b"first")
        session.learn("first.png")
        plan = session._plan
        assert plan is not None
        signer = Signer(plan, ReadOnlyCredentials("AKID", "secret/key", token, None))
        for number, key in enumerate(KEYS):
            data = bytes([number % 256]) * number
            theirs = await put(key, data)
            url, ours = signer.sign(key, data, checksum(data), theirs.headers["X-Amz-Date"])
            assert url == theirs.url
            # The HTTP client adds the length, and sends no "Expect" for a body of bytes.
            expected = {n: v for n, v in theirs.headers.items() if n not in {"Content-Length", "Expect"}}
            assert {n.lower(): v for n, v in ours.items()} == {n.lower(): v for n, v in expected.items()}, key
            assert theirs.body == data


async def test_a_request_without_the_sha256_equals_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"region_name": "eu-central-1", "aws_access_key_id": "AKID", "aws_secret_access_key": "secret"}
    async with sdk(monkeypatch, "bucket", HEADERS, **options) as (session, put):
        await put("first.png", b"first")
        session.learn("first.png")
        session.trust_answers()
        plan = session._plan
    assert plan is not None
    async with sdk(monkeypatch, "bucket", HEADERS, s3={"payload_signing_enabled": False}, **options) as (_, put):
        theirs = await put("a.png", b"data")
    signer = Signer(plan, ReadOnlyCredentials("AKID", "secret", None, None))
    _, ours = signer.sign("a.png", b"data", checksum(b"data"), theirs.headers["X-Amz-Date"])
    assert ours["Authorization"] == theirs.headers["Authorization"]


async def test_the_answer_to_a_concurrent_put_uses_up_no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {"aws_access_key_id": "AKID", "aws_secret_access_key": "secret"}
    async with sdk(monkeypatch, "bucket", S3Settings(), region_name="eu-central-1", **keys) as (session, put):
        for _ in range(5):
            await put("a.png", b"first")
            await put("b.png", b"second")
            session.learn("a.png")
            session.learn("b.png")
            assert session._plan is None
        await put("c.png", b"third")
        session.learn("c.png")
        assert session._plan is not None


def test_other_kinds_of_requests_are_left_to_the_sdk() -> None:
    for name, value in (("x-amz-s3session-token", "t"), ("Transfer-Encoding", "chunked"), ("x-amz-trailer", "x")):
        request = _request({name: value})
        assert Plan.of(request, "a.png") is None
    assert Plan.of(_request({}), "b.png") is None
    ecdsa = {"Authorization": "AWS4-ECDSA-P256-SHA256 Credential=A/20260101/s3/aws4_request"}
    assert Plan.of(_request(ecdsa), "a.png") is None
    assert Plan.of(_request({}), "a.png") is not None


def _request(more: Mapping[str, str]) -> Any:
    class Request:
        url = "http://127.0.0.1:9000/bucket/a.png"
        headers: Mapping[str, str] = {
            "Authorization": "AWS4-HMAC-SHA256 Credential=A/20260101/us-east-1/s3/aws4_request, SignedHeaders=host",
            "x-amz-checksum-crc32": "AAAAAA==",
            **more,
        }

    return Request()


# Direct or by the SDK -----------------------------------------------------------------------------------------------


async def test_every_put_after_the_first_is_one_direct_request(server: Scripted) -> None:
    async with open_store("s3://bucket/p", Settings()) as store:
        for i in range(20):
            assert await store.put(f"p/{i}.png", b"x" * i) == "tag"
    assert (len(server.sdk), len(server.direct)) == (1, 19)
    assert server.bodies == {f"/bucket/p/{i}.png": b"x" * i for i in range(20)}


async def test_client_sdk_sends_no_direct_request(server: Scripted) -> None:
    async with open_store("s3://bucket/p", Settings(s3=S3Settings(client="sdk"))) as store:
        for i in range(3):
            await store.put(f"p/{i}.png", b"x")
    assert (len(server.sdk), len(server.direct)) == (3, 0)


async def test_a_proxy_is_left_to_the_sdk(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "botocore.httpsession.ProxyConfiguration.proxy_url_for", lambda *_: None if not server.sdk else "http://proxy"
    )
    async with open_store("s3://bucket/p", Settings()) as store:
        assert isinstance(store, S3Store)
        await store.put("p/0.png", b"x")
        assert store._session._plan is None


@pytest.mark.parametrize("answer", [204, 301, 307, 400, 403, 404, 409])
async def test_a_refused_direct_put_is_repeated_by_the_sdk(answer: int, server: Scripted) -> None:
    async with open_store("s3://bucket/p", Settings()) as store:
        await store.put("p/first.png", b"x")
        server.answers = [answer]
        assert await store.put("p/a.png", b"whole") == "tag"
        assert (len(server.sdk), len(server.direct)) == (2, 1)
        assert server.bodies["/bucket/p/a.png"] == b"whole"
        await store.put("p/b.png", b"x")
    assert (len(server.sdk), len(server.direct)) == (2, 2)


@pytest.mark.parametrize("answer", [0, 408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("client", ["direct", "sdk"])
async def test_a_transient_answer_is_raised_after_one_attempt(answer: int, client: Any, server: Scripted) -> None:
    async with open_store("s3://bucket/p", Settings(s3=S3Settings(client=client))) as store:
        for number in range(2):
            await store.put(f"p/{number}.png", b"x")
        # If the server closed a kept connection, the HTTP client opens another one before it fails.
        server.to_all, server.answers = True, [answer] if answer else [0, 0]
        tried = len(server.answers)
        with pytest.raises(TransientError) as raised:
            await store.put("p/a.png", b"whole")
        assert raised.value.slow_down == (answer in {429, 503})
        assert len(server.sdk) + len(server.direct) == 2 + tried
        assert await store.put("p/a.png", b"whole") == "tag"


async def test_direct_puts_stop_after_repeated_refusals(server: Scripted) -> None:
    server.answers = [403] * 100
    async with open_store("s3://bucket/p", Settings()) as store:
        for i in range(40):
            await store.put(f"p/{i}.png", b"x")
    assert len(server.sdk) == 40
    # Three plans, each refused four times.
    assert len(server.direct) == 12


async def test_refreshed_credentials_are_used_by_the_next_request(server: Scripted) -> None:
    coming = [
        Found(ReadOnlyCredentials("first", "secret", "token-1", None), 1000.0, "env"),
        Found(ReadOnlyCredentials("second", "secret", None, None), None, "env"),
    ]
    now = [0.0]
    shared = SharedCredentials(lambda _: coming.pop(0), Clock(lambda: now[0]))
    async with open_store("s3://bucket/p", Settings()) as store:
        assert isinstance(store, S3Store)
        store._credentials = AsyncCredentials(shared)
        for i in range(3):
            await store.put(f"p/{i}.png", b"x")
        now[0] = 1000.0
        await store.put("p/3.png", b"x")
    assert [headers.get("x-amz-security-token") for headers in server.direct] == ["token-1", "token-1", None]
    assert "credential=second/" in server.direct[-1]["authorization"]


async def test_a_cancel_at_any_step_of_closing_leaves_no_connection(server: Scripted) -> None:
    for steps in range(1, 9):
        opened = open_store("s3://bucket/p", Settings())
        store = await opened.__aenter__()
        assert isinstance(store, S3Store)
        for name in ("sdk", "direct"):
            await store.put(f"p/{name}.png", b"x")
        session: Any = store._session
        (pool,), (aiohttp_session,) = session._pools.values(), session._sessions.values()
        closing = asyncio.create_task(opened.__aexit__(None, None, None))
        for _ in range(steps):
            await asyncio.sleep(0)
        closing.cancel()
        with suppress(asyncio.CancelledError):
            await closing
        assert aiohttp_session.closed
        assert all(connection.transport.is_closing() for connection in pool._open)


async def test_a_large_object_is_sent_directly(server: Scripted) -> None:
    data = bytes(range(256)) * (3 * MIB // 256)
    async with open_store("s3://bucket/p", Settings()) as store:
        await store.put("p/first.png", b"x")
        await store.put("p/large.png", data)
    assert server.bodies["/bucket/p/large.png"] == data
    assert (len(server.sdk), len(server.direct)) == (1, 1)


async def test_a_real_server_accepts_and_checks_direct_puts(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(f"s3://{bucket}/p", Settings(s3=S3Settings(metadata={"run": "7"}))) as store:
        assert isinstance(store, S3Store)
        session, credentials = store._session, store._credentials
        assert credentials is not None
        keys = [f"p/{name}.png" for name in AWKWARD]
        await store.put("p/first.png", b"x")
        for key in keys:
            answer = await session.put(key, key.encode(), checksum(key.encode()), credentials)
            assert answer is not None
            assert answer.status == 200, key
        # The server refuses a body that does not match its checksum.
        tampered = await session.put("p/tampered.png", b"pixelz", checksum(b"pixels"), credentials)
        assert tampered is not None
        assert tampered.status == 400
        # Also if the SHA-256 is left out, as over TLS.
        assert session._plan is not None
        session._plan = session._plan._replace(trusts_answers=True)
        for key, data, status in (("p/unsigned.png", b"pixels", 200), ("p/tampered.png", b"pixelz", 400)):
            answer = await session.put(key, data, checksum(b"pixels"), credentials)
            assert answer is not None
            assert answer.status == status
        monkeypatch.setattr(store._client, "put_object", None)
        await store.put("p/second.png", b"y")
    async with Session().client("s3") as client:
        for key in keys:
            there = await client.get_object(Bucket=bucket, Key=key)
            assert await there["Body"].read() == key.encode()
            assert (there["ContentType"], there["Metadata"]) == ("image/png", {"run": "7"})
        assert "p/tampered.png" not in [o["Key"] for o in (await client.list_objects_v2(Bucket=bucket))["Contents"]]


async def test_a_permanent_refusal_is_an_object_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(f"s3://{bucket}", Settings(s3=S3Settings(max_attempts=1))) as store:
        assert isinstance(store, S3Store)
        await store.put("first.png", b"pixels")
        monkeypatch.setattr("async_maps.stores.headers.isal_zlib.crc32", lambda _: 7)
        with pytest.raises(ObjectError, match=r"refused with BadDigest|checksum"):
            await store.put("a.png", b"pixels")
