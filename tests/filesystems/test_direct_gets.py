"""GETs without the SDK: they equal the SDK's, and what is not a plain answer is left to it."""

from __future__ import annotations

import os
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.handlers import add_retry_headers, validate_bucket_name
from botocore.session import Session

from async_maps.errors import SourceError
from async_maps.filesystems.addresses import Address
from async_maps.filesystems.aws import client_options, pay_for_requests
from async_maps.filesystems.direct_gets import MOST_BYTES, Wanted
from async_maps.filesystems.get_plan import GetPlan, GetSigner
from async_maps.filesystems.s3 import S3Filesystem
from async_maps.settings import S3Settings
from tests.support.leftovers import leaves_nothing
from tests.support.s3 import upload
from tests.support.s3_proxy import Proxy, Refusal, counting
from tests.support.terse_server import Terse, terse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from async_maps.demo import seaweed

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

KEYS = ["a.npy", "maps/é ü.npy", "a+b&c=d?e#f.npy", "~user/%41.npy", "a//b/'quoted'(1)!*.npy"]
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "path": ("bucket", {"endpoint_url": "http://127.0.0.1:9000"}),
    "path below": ("bucket", {"endpoint_url": "https://store.example/s3/gate%20way"}),
    "virtual host": ("bucket", {"region_name": "eu-central-1"}),
    "dots": ("bucket.with.dots", {"region_name": "eu-central-1"}),
    "dual-stack": ("bucket", {"region_name": "eu-central-1", "s3": {"use_dualstack_endpoint": True}}),
    "access point": ("arn:aws:s3:us-west-2:123456789012:accesspoint/maps", {"region_name": "us-west-2"}),
    "tenant": ("acme:maps", {"endpoint_url": "http://127.0.0.1:9000"}),
}
DATA = bytes(range(256)) * 40


# Requests -----------------------------------------------------------------------------------------------------------


@pytest.mark.fast
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("token", [None, "a/token+="])
@pytest.mark.parametrize("settings", [S3Settings(), S3Settings(request_payer="requester")], ids=["plain", "payer"])
def test_a_request_equals_the_sdks(
    place: str, token: str | None, settings: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    bucket, options = PLACES[place]
    config = Config(**client_options(settings, 1), s3=options.get("s3"))
    sent: list[Any] = []

    def answer(request: Any, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, HTTPHeaders(), None)

    credentials = {"aws_access_key_id": "AKID", "aws_secret_access_key": "secret/key", "aws_session_token": token}
    given = {name: value for name, value in options.items() if name != "s3"}
    session: Any = Session()
    with closing(session.create_client("s3", config=config, **given, **credentials)) as client:
        client.meta.events.unregister("request-created", add_retry_headers)
        client.meta.events.unregister("before-parameter-build.s3", validate_bucket_name)
        client.meta.events.register("before-send.s3", answer)
        pay_for_requests(client, settings)
        plan = None
        for key in KEYS:
            for etag in (None, '"tag"'):
                match = {"IfMatch": etag} if etag else {}
                client.get_object(Bucket=bucket, Key=key, Range="bytes=3-9", **match)
                theirs = {n.lower(): v if isinstance(v, str) else v.decode() for n, v in sent[-1].headers.items()}
                plan = plan or GetPlan.of(sent[-1], key)
                assert plan is not None
                signer = GetSigner(plan, ReadOnlyCredentials("AKID", "secret/key", token, None))
                url, ours = signer.sign(key, Wanted(3, 7).byte_range, etag, theirs["x-amz-date"])
                assert url == sent[-1].url
                assert {name.lower(): value for name, value in ours.items()} == theirs


# A real server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def proxy(s3: seaweed.S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with counting(s3, monkeypatch) as proxy:
        yield proxy


@pytest.fixture
def filesystem() -> Iterator[S3Filesystem]:
    with closing(S3Filesystem(S3Settings(max_attempts=2, read_timeout_s=5.0))) as opened:
        yield opened


@pytest.fixture
def by_sdk(filesystem: S3Filesystem, bucket: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the keys that the SDK reads, after the object ``first``, whose GET is the plan of the others."""
    upload(bucket, {"first": b"", "a": DATA, "b c/é": DATA})
    upload(bucket, {"first": b"x"})
    filesystem.get(Address("s3", bucket, "first"), 0, 10)
    keys: list[str] = []
    client = filesystem._get_client()
    get_object = client.get_object

    def noting(**arguments: Any) -> Any:
        keys.append(arguments["Key"])
        return get_object(**arguments)

    monkeypatch.setattr(client, "get_object", noting)
    return keys


def test_after_the_first_get_none_needs_the_sdk(
    bucket: str, proxy: Proxy, filesystem: S3Filesystem, by_sdk: list[str]
) -> None:
    before = len(proxy.asked)
    for key in ("a", "b c/é"):
        found = filesystem.get(Address("s3", bucket, key), 0, 100_000)
        assert (bytes(found.data), found.size) == (DATA, len(DATA))
    part = filesystem.get(Address("s3", bucket, "a"), 300, 20, found.etag)
    assert (bytes(part.data), part.size) == (DATA[300:320], len(DATA))
    kept = filesystem.read(Address("s3", bucket, "a"), Wanted(0, 1000, keep=10))
    assert (bytes(kept.data), kept.size) == (DATA[:10], len(DATA))
    assert [asked.method for asked in proxy.asked[before:]] == ["GET"] * 4
    assert not by_sdk


def test_a_long_part_is_left_to_the_sdk(bucket: str, filesystem: S3Filesystem, by_sdk: list[str]) -> None:
    found = filesystem.get(Address("s3", bucket, "a"), 0, MOST_BYTES + 1)
    assert (bytes(found.data), by_sdk) == (DATA, ["a"])


def test_a_direct_get_tells_the_same_as_the_sdks(bucket: str, filesystem: S3Filesystem, by_sdk: list[str]) -> None:
    address = Address("s3", bucket, "a")
    direct = filesystem.get(address, 0, 100)
    assert not by_sdk
    with closing(S3Filesystem(S3Settings(client="sdk"))) as sdk:
        assert sdk.get(address, 0, 100) == direct
        assert sdk._direct is None


def test_errors_have_the_words_of_the_sdks_path(bucket: str, filesystem: S3Filesystem, by_sdk: list[str]) -> None:
    with pytest.raises(SourceError, match="the object was replaced while it was read"):
        filesystem.get(Address("s3", bucket, "a"), 0, 10, '"another"')
    with pytest.raises(FileNotFoundError, match="the object does not exist"):
        filesystem.get(Address("s3", bucket, "none"), 0, 10)
    assert filesystem.get(Address("s3", bucket, "a"), len(DATA), 10).size == len(DATA)
    assert by_sdk == ["a", "none", "a"]
    # None of them says anything about other objects.
    filesystem.get(Address("s3", bucket, "a"), 0, 10)
    assert len(by_sdk) == 3


def test_a_broken_answer_is_repeated_by_the_sdk(
    bucket: str, proxy: Proxy, filesystem: S3Filesystem, by_sdk: list[str]
) -> None:
    proxy.break_off = 1
    assert bytes(filesystem.get(Address("s3", bucket, "a"), 0, 100_000).data) == DATA
    assert by_sdk == ["a"]


def test_during_an_outage_only_the_sdk_asks(
    bucket: str, proxy: Proxy, filesystem: S3Filesystem, by_sdk: list[str]
) -> None:
    asked: list[str] = []

    def refuse(_method: str, path: str, _query: str) -> Refusal:
        asked.append(path)
        return Refusal(503, "SlowDown")

    proxy.refuse = refuse
    counts = []
    for _ in range(6):
        asked.clear()
        with pytest.raises(SourceError, match="SlowDown"):
            filesystem.get(Address("s3", bucket, "a"), 0, 10)
        counts.append(len(asked))
    assert counts == [3, 3, 3, 3, 2, 2]
    proxy.refuse = lambda *_: None
    by_sdk.clear()
    for _ in range(3):
        filesystem.get(Address("s3", bucket, "a"), 0, 10)
    assert by_sdk == ["a"]


def test_closing_ends_a_direct_get(bucket: str, proxy: Proxy, filesystem: S3Filesystem, by_sdk: list[str]) -> None:
    proxy.gate.clear()
    begun = filesystem.begin(Address("s3", bucket, "a"), Wanted(0, 10))
    while not proxy.under_way:
        assert not begun.done()
    filesystem.close()
    assert begun.result(30) is None
    with pytest.raises(SourceError, match="closed"):
        filesystem.get(Address("s3", bucket, "a"), 0, 10)
    assert not by_sdk


# Answers that are not plain -----------------------------------------------------------------------------------------

OK, PART = (b"HTTP/1.1 " + status + b"\r\nConnection: close\r\n" for status in (b"200 OK", b"206 Partial Content"))
RANGE = b"Content-Length: 10\r\nContent-Range: bytes 0-9/10\r\n"
PLAIN = PART + RANGE + b'ETag: "t"\r\n\r\n0123456789'
ODD = {
    "no length": PART + b"Content-Range: bytes 0-9/10\r\n\r\n0123456789",
    "no total": PART + b"Content-Length: 10\r\nContent-Range: bytes 0-9/*\r\n\r\n0123456789",
    "another range": PART + b"Content-Length: 10\r\nContent-Range: bytes 1-10/20\r\n\r\n0123456789",
    "too short": PART + b"Content-Length: 5\r\nContent-Range: bytes 0-4/20\r\n\r\n01234",
    "a contradiction": PART + b"Content-Length: 10\r\nContent-Range: bytes 0-4/5\r\n\r\n0123456789",
    "truncated": PART + b"Content-Length: 10\r\nContent-Range: bytes 0-9/10\r\n\r\n01234",
    "a date in words": PART
    + b"Content-Length: 10\r\nContent-Range: bytes 0-9/10\r\nLast-Modified: x\r\n\r\n0123456789",
    "two lengths": PART + b"Content-Length: 10\r\nContent-Length: 11\r\nContent-Range: bytes 0-9/10\r\n\r\n0123456789",
    "a redirect": b"HTTP/1.1 307 T\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "a refusal": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    "no HTTP": b"SSH-2.0\r\n\r\n",
}
CHUNKS = (
    PART + b"Transfer-Encoding: chunked\r\nContent-Range: bytes 0-9/10\r\n\r\n4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"
)
WHOLE = OK + b"Content-Length: 10\r\n\r\n0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, service_descriptions_read_once: None) -> Iterator[Terse]:
    with terse(monkeypatch) as running:
        yield running


@pytest.mark.parametrize("form", ODD)
def test_an_odd_answer_is_repeated_by_the_sdk(form: str, server: Terse, filesystem: S3Filesystem) -> None:
    server.answers["GET"] = [PLAIN, ODD[form], PLAIN]
    address = Address("s3", "bucket", "key")
    filesystem.get(address, 0, 10)
    assert filesystem.begin(address, Wanted(0, 10)).result() is None
    assert bytes(filesystem.get(address, 0, 10).data) == b"0123456789"


@pytest.mark.parametrize("answer", [PLAIN, CHUNKS, WHOLE], ids=["plain", "chunks", "whole"])
def test_a_plain_answer_needs_no_other(answer: bytes, server: Terse, filesystem: S3Filesystem) -> None:
    server.answers["GET"] = [PLAIN, answer]
    address = Address("s3", "bucket", "key")
    filesystem.get(address, 0, 10)
    found = filesystem.begin(address, Wanted(0, 10)).result()
    assert found is not None
    assert (bytes(found.data), found.size) == (b"0123456789", 10)
    assert len(server.heads) == 2


def test_a_server_without_plain_answers_is_left_to_the_sdk(server: Terse, filesystem: S3Filesystem) -> None:
    server.answers["GET"] = [ODD["no total"]]
    server.answers["HEAD"] = [OK + b"Content-Length: 10\r\n\r\n"]
    for _ in range(40):
        assert filesystem.get(Address("s3", "bucket", "key"), 0, 20).size == 10
    direct = sum(b"User-Agent" in head and b"amz-sdk" not in head.lower() for head in server.heads)
    assert 0 < direct <= 12
