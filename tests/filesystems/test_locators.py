"""Addresses are parsed into bucket and key."""

from __future__ import annotations

import re

import pytest

from async_maps.errors import SettingsError, SourceError
from async_maps.filesystems.addresses import Address, is_remote, locator_in, parse_address

pytestmark = [pytest.mark.fast]


@pytest.mark.parametrize(
    ("address", "bucket", "key"),
    [
        ("s3://bucket/a/b.png", "bucket", "a/b.png"),
        ("s3://bucket/a b%20+/é//", "bucket", "a b%20+/é//"),
        ("s3://bucket", "bucket", ""),
        ("s3://bucket/", "bucket", ""),
        (
            "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint:x/key",
            "arn:aws:s3:eu-west-1:123456789012:accesspoint:x",
            "key",
        ),
        (
            "s3://arn:aws:s3:us-east-1:123456789012:accesspoint/my-ap/prefix/a.png",
            "arn:aws:s3:us-east-1:123456789012:accesspoint/my-ap",
            "prefix/a.png",
        ),
        (
            "s3://arn:aws-us-gov:s3:us-gov-west-1:123456789012:accesspoint/my-ap",
            "arn:aws-us-gov:s3:us-gov-west-1:123456789012:accesspoint/my-ap",
            "",
        ),
        (
            "s3://arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/my-ap/a/b",
            "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/my-ap",
            "a/b",
        ),
        ("s3://tenant:bucket/prefix", "tenant:bucket", "prefix"),
        ("s3://:bucket/prefix", ":bucket", "prefix"),
        ("s3://maps--usw2-az1--x-s3/p", "maps--usw2-az1--x-s3", "p"),
        ("s3://bucket/s3://other/key", "bucket", "s3://other/key"),
    ],
)
def test_an_address_in_s3_has_a_bucket_and_a_key(address: str, bucket: str, key: str) -> None:
    found = parse_address(address)
    assert found == Address("s3", bucket, key)
    assert parse_address(str(found)) == found


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("s3://arn:aws:s3:::my-bucket/p", "is the ARN of a bucket; expected s3://my-bucket/p"),
        ("s3://arn:aws:s3:us-east-1:12:accesspoint/x", "is not the ARN of an access point; expected s3://arn:aws:s3:R"),
        ("s3://arn:aws:s3:us-east-1:123456789012:accesspoint", "is not the ARN of an access point"),
        ("s3://arn:aws:s3::123456789012:accesspoint/m.mrap/p", "is a multi-region access point, which needs"),
        ("s3://arn:aws:s3::123456789012:accesspoint:m.mrap", "use the access point or the bucket of one region"),
    ],
)
def test_an_arn_that_cannot_be_used_is_refused_in_one_sentence(address: str, sentence: str) -> None:
    for error in (SourceError, SettingsError):
        with pytest.raises(error, match=re.escape(sentence)):
            parse_address(address, error)


@pytest.mark.parametrize(
    "address",
    [
        "s3://a:b:c/x",
        "s3://tenant:/x",
        "s3://bucket\n/x",
        "s3://",
        "s3:///key",
        "s3://$b/x",
        "s3://b/x",
        "gs://b/x",
        "gs://Bucket/x",
        "gs:///x",
        "az://ab/x",
        "az://a--b/x",
        "az://Maps/x",
        "az://-maps/x",
        f"az://{64 * 'a'}/x",
        "https://maps.blob.core.windows.net/",
        "https://maps.blob.core.windows.net/a_b/x",
    ],
)
def test_an_address_without_a_bucket_name_is_refused(address: str) -> None:
    scheme = address[:2].replace("ht", "az")
    what = "container" if scheme == "az" else "bucket"
    for error in (SourceError, SettingsError):
        with pytest.raises(error, match=f"is not a valid {what} name; expected {scheme}://{what}/prefix"):
            parse_address(address, error)


@pytest.mark.parametrize("address", ["bucket/key", "ftp://bucket/key", "", "s3:/bucket"])
def test_a_text_without_a_known_scheme_is_no_address(address: str) -> None:
    with pytest.raises(SourceError, match="is not the address of an object; expected s3://bucket/key, gs://"):
        parse_address(address)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("gs://bucket.example.com/a b%20/é", Address("gs", "bucket.example.com", "a b%20/é")),
        ("gs://my_bucket-1", Address("gs", "my_bucket-1", "")),
        ("az://maps-1/a b%20/é", Address("az", "maps-1", "a b%20/é")),
        ("az://$web/x", Address("az", "$web", "x")),
        (
            "https://account.blob.core.windows.net/maps/a%20b%2520/%C3%A9",
            Address("az", "maps", "a b%20/é", "https://account.blob.core.windows.net"),
        ),
        (
            "https://Account.Blob.core.windows.net/maps/X",
            Address("az", "maps", "X", "https://account.blob.core.windows.net"),
        ),
        (
            "https://account.z12.blob.storage.azure.net/maps/x",
            Address("az", "maps", "x", "https://account.z12.blob.storage.azure.net"),
        ),
        (
            "http://127.0.0.1:10000/devstoreaccount1/maps/x",
            Address("az", "maps", "x", "http://127.0.0.1:10000/devstoreaccount1"),
        ),
    ],
)
def test_an_address_in_another_cloud_has_a_bucket_and_a_key(address: str, expected: Address) -> None:
    assert is_remote(address)
    assert parse_address(address) == expected
    assert parse_address(str(expected)) == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/maps/x.png",
        "https://account.file.core.windows.net/maps/x",
        "https://evil.com/account.blob.core.windows.net/maps/x",
        "https://account.blob.core.windows.net@evil.com/maps/x",
        "http://127.0.0.1:10000/",
        "http://127.0.0.1:99999/devstoreaccount1/maps/x",
        "http://[::1:::]:80/devstoreaccount1/maps/x",
    ],
)
def test_another_url_is_no_address(url: str) -> None:
    assert not is_remote(url)
    with pytest.raises(SourceError, match="is not the URL of an object in Azure"):
        parse_address(url)


@pytest.mark.parametrize("mark", ["?sv=2021&sig=S3CRETsecret", "#part"])
def test_a_url_with_a_signature_is_refused_without_it(mark: str) -> None:
    url = "https://account.blob.core.windows.net/maps/p"
    for error in (SourceError, SettingsError):
        with pytest.raises(error, match=f"^'{re.escape(url)}' has more after it .*: remove it; AZURE_") as raised:
            parse_address(f"{url}{mark}", error)
        assert "S3CRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("folder", "locator"),
    [
        ("s3://bucket/p", "s3://bucket/p/a b%é"),
        ("gs://bucket/", "gs://bucket/a b%é"),
        (
            "https://account.blob.core.windows.net/maps/p/",
            "https://account.blob.core.windows.net/maps/p/a%20b%25%C3%A9",
        ),
    ],
)
def test_only_urls_are_percent_encoded(folder: str, locator: str) -> None:
    assert locator_in(folder, "a b%é") == locator
