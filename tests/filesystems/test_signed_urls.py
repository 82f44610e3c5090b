"""Signed URLs are those of the vendors' libraries, and Azurite accepts them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.error import HTTPError
from urllib.parse import parse_qs, quote, urlsplit
from urllib.request import urlopen

import pytest

from async_maps.errors import SettingsError, StoreError
from async_maps.filesystems.addresses import Address
from async_maps.filesystems.presign import presigning
from async_maps.filesystems.services.azure_account import Account
from async_maps.filesystems.services.google import UrlSigner
from async_maps.filesystems.services.signed_urls import Life, azure_url, google_url
from tests.support.clouds import azure, azurite_url

if TYPE_CHECKING:
    from tests.support.clouds import Azure

__all__ = ["azure", "azurite_url"]

KEYS = ["a.png", "p q/é %41+?#&.png", "deep/~x/'(y)!*.png"]
LIFE = Life(datetime(2026, 11, 30, 5, 0, tzinfo=UTC), 7200)


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
    found = urlsplit(azure_url(account, "maps", key, LIFE))
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
        with pytest.raises(StoreError, match="the key in the environment is that of"):
            presigned(f"https://another1.blob.core.windows.net/{azure.bucket}/a.png")
    for key, url in zip(KEYS, urls, strict=True):
        with urlopen(url) as answer:  # noqa: S310  # a URL of this machine
            assert answer.read() == key.encode()
    with pytest.raises(HTTPError) as refused:
        urlopen(urls[0].replace("/a.png?", f"/{quote(KEYS[1])}?"))  # noqa: S310
    refused.value.close()
    assert refused.value.code == 403


def test_a_signature_in_azure_needs_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_CONNECTION_STRING", raising=False)
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT", "account1")
    monkeypatch.delenv("AZURE_STORAGE_KEY", raising=False)
    with (
        pytest.raises(SettingsError, match="needs the key of the account: set AZURE_STORAGE_KEY"),
        presigning(1, "https://account1.blob.core.windows.net/maps"),
    ):
        pass
