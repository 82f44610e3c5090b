"""Signed URLs are those of the vendors' libraries, and Azurite accepts them."""

from __future__ import annotations

import base64
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import urlopen

import pytest

from async_maps.errors import SettingsError, StoreError
from async_maps.filesystems.addresses import Address
from async_maps.filesystems.presign import presigning
from async_maps.filesystems.services.azure_account import Account
from async_maps.filesystems.services.azure_urls import SigningKey, azure_url, delegated_key
from async_maps.filesystems.services.google import UrlSigner
from async_maps.filesystems.services.google_urls import google_url
from async_maps.filesystems.services.signed_urls import Life
from tests.support.clouds import azure, azurite_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.clouds import Azure

__all__ = ["azure", "azurite_url"]

KEYS = ["a.png", "p q/é %41+?#&.png", "deep/~x/'(y)!*.png"]
LIFE = Life(datetime(2026, 11, 30, 5, 0, tzinfo=UTC), 7200)
KEY_OF_USER = SigningKey(
    b"key",
    {
        "skoid": "oid", "sktid": "tid", "skt": "2026-11-30T04:55:00Z", "ske": "2026-11-30T07:00:00Z", "sks": "b",
        "skv": "2021-12-02",
    },
)  # fmt: skip
DELEGATED = b"""<?xml version="1.0" encoding="utf-8"?><UserDelegationKey><SignedOid>oid</SignedOid>
<SignedTid>tid</SignedTid><SignedStart>2026-11-30T04:55:00Z</SignedStart>
<SignedExpiry>2026-11-30T07:00:00Z</SignedExpiry><SignedService>b</SignedService>
<SignedVersion>2021-12-02</SignedVersion><Value>a2V5</Value></UserDelegationKey>"""


@pytest.mark.parametrize("key", KEYS)
def test_a_url_in_google_cloud_is_that_of_the_vendors_library(key: str) -> None:
    reason = "the package google-cloud-storage is not installed"
    vendors = pytest.importorskip("google.cloud.storage._signing", reason=reason)
    signing = pytest.importorskip("google.auth.credentials")

    class Credentials(signing.Signing):  # type: ignore[name-defined, misc]  # known at run time only
        signer_email = "a@b.iam.gserviceaccount.com"
        signer = None

        def sign_bytes(self, message: bytes) -> bytes:
            return message[::-1]

    credentials = Credentials()
    assert google_url("bucket", key, LIFE, UrlSigner(credentials.signer_email, credentials.sign_bytes)) == (
        vendors.generate_signed_url_v4(
            credentials,
            # As of Blob.generate_signed_url.
            resource=f"/bucket/{quote(key, safe='/~')}",
            expiration=LIFE.seconds,
            api_access_endpoint="https://storage.googleapis.com",
            _request_timestamp="20261130T050000Z",
        )
    )


@pytest.mark.parametrize("key", KEYS)
def test_a_signature_for_a_blob_is_that_of_the_vendors_library(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "the package azure-storage-blob is not installed"
    vendors = pytest.importorskip("azure.storage.blob._shared_access_signature", reason=reason)
    monkeypatch.setattr("azure.storage.blob._shared_access_signature.X_MS_VERSION", "2021-12-02")
    account = Account("https://account1.blob.core.windows.net", b"key")
    found = urlsplit(azure_url(account, "maps", key, LIFE, SigningKey(b"key", {})))
    expected = vendors.generate_blob_sas(
        "account1", "maps", key, account_key=base64.b64encode(b"key").decode(), permission="r", protocol="https",
        start="2026-11-30T04:55:00Z", expiry="2026-11-30T07:00:00Z",
    )  # fmt: skip
    assert parse_qs(found.query) == parse_qs(expected)


def test_azurite_accepts_a_presigned_url_for_its_object_only(azure: Azure) -> None:
    account = Account.from_environment()
    for key in KEYS:
        azure.upload(key, key.encode())
    with presigning(1, f"{account.url}/{azure.bucket}") as presigned:
        urls = [presigned(str(Address("az", azure.bucket, key, account.url))) for key in KEYS]
        with pytest.raises(StoreError, match="the credentials are for http://127"):
            presigned(f"https://another1.blob.core.windows.net/{azure.bucket}/a.png")
    for key, url in zip(KEYS, urls, strict=True):
        with urlopen(url) as answer:  # noqa: S310  # a URL of this machine
            assert answer.read() == key.encode()
    with pytest.raises(HTTPError) as refused:
        urlopen(urls[0].replace("/a.png?", f"/{quote(KEYS[1])}?"))  # noqa: S310
    refused.value.close()
    assert refused.value.code == 403


class Delegating(BaseHTTPRequestHandler):
    """Gives a key for the right token, as Azure does."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        is_right = self.headers["Authorization"] == "Bearer right" and self.path.endswith("comp=userdelegationkey")
        assert body == b"<KeyInfo><Start>2026-11-30T04:55:00Z</Start><Expiry>2026-11-30T07:00:00Z</Expiry></KeyInfo>"
        answer = (
            DELEGATED if is_right else b"<Error><Code>InvalidAuthenticationInfo</Code><Message>no</Message></Error>"
        )
        self.send_response(200 if is_right else 401)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


@contextmanager
def _delegating() -> Iterator[Account]:
    with HTTPServer(("127.0.0.1", 0), Delegating) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        serving.start()
        try:
            yield Account(f"http://127.0.0.1:{server.server_address[1]}/account1")
        finally:
            server.shutdown()
            serving.join()


def test_a_key_is_delegated_to_the_user_of_a_token() -> None:
    refused = "is refused with InvalidAuthenticationInfo: the token is missing, or no"
    with _delegating() as account:
        assert delegated_key(account, "right", LIFE) == KEY_OF_USER
        with pytest.raises(StoreError, match=refused):
            delegated_key(account, "wrong", LIFE)


@pytest.mark.parametrize(
    ("key", "signature"),
    [
        ("a.png", "K9+VgpYxiKOXCPH6lUtkYBbRiRcmGOMxXUtExszd96I="),
        ("p q/é %41+?#&.png", "08DBg+hXKUP/rveVAxtwI94Bi6FFJVUKvAoprNBi6jQ="),
    ],
)
def test_a_signature_by_a_delegated_key_is_that_of_the_vendors_library(key: str, signature: str) -> None:
    # Those of azure-storage-blob 12.19.1 for this version; newer versions of it sign other fields.
    account = Account("https://account1.blob.core.windows.net")
    query = parse_qs(urlsplit(azure_url(account, "maps", key, LIFE, KEY_OF_USER)).query)
    assert query == {
        "st": ["2026-11-30T04:55:00Z"], "se": ["2026-11-30T07:00:00Z"], "sp": ["r"], "spr": ["https"],
        "sv": ["2021-12-02"], "sr": ["b"], "skoid": ["oid"], "sktid": ["tid"], "skt": ["2026-11-30T04:55:00Z"],
        "ske": ["2026-11-30T07:00:00Z"], "sks": ["b"], "skv": ["2021-12-02"], "sig": [signature],
    }  # fmt: skip


@pytest.mark.parametrize("answer", [b"<html><p>sign in</p></html>", b"sign in", b"", DELEGATED.replace(b"a2V5", b"")])
def test_a_sign_in_page_is_no_key(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.filesystems.test_signed_urls.DELEGATED", answer)
    with _delegating() as account, pytest.raises(StoreError, match="a key that signs URLs cannot be understood"):
        delegated_key(account, "right", LIFE)


def test_no_signature_lasts_longer_than_a_delegated_key() -> None:
    begin, end = Life(LIFE.begin, 168 * 3600).texts()
    assert (begin, end) == ("2026-11-30T04:55:00Z", "2026-12-07T04:55:00Z")


def test_no_url_is_signed_for_an_emulator() -> None:
    with (
        pytest.raises(SettingsError, match=r"no URL can be signed for http://127\.0\.0\.1:9023, an emulator"),
        presigning(1, "gs://bucket/p at http://127.0.0.1:9023"),
    ):
        pass


def test_a_shared_access_signature_signs_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = "BlobEndpoint=https://account1.blob.core.windows.net;SharedAccessSignature=sv=1&sig=secret"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", connection)
    with (
        pytest.raises(SettingsError, match="cannot sign others: set AZURE_STORAGE_KEY, or sign in") as raised,
        presigning(1, "https://account1.blob.core.windows.net/maps"),
    ):
        pass
    assert "secret" not in str(raised.value)
