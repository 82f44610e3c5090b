"""Addresses in S3 are parsed into bucket and key."""

from __future__ import annotations

import pytest

from async_maps.errors import SettingsError, SourceError
from async_maps.filesystems.locators import S3Address, parse_s3_address

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
        ("s3://bucket/s3://other/key", "bucket", "s3://other/key"),
    ],
)
def test_an_address_has_a_bucket_and_a_key(address: str, bucket: str, key: str) -> None:
    found = parse_s3_address(address)
    assert found == S3Address(bucket, key)
    assert parse_s3_address(str(found)) == found


@pytest.mark.parametrize(
    "address", ["s3://", "s3:///key", "s3://$b/x", "s3://b/x", "bucket/key", "gs://bucket/key", ""]
)
def test_an_address_without_a_bucket_name_is_refused(address: str) -> None:
    for error in (SourceError, SettingsError):
        with pytest.raises(error, match="is not a valid bucket name; expected s3://bucket/prefix"):
            parse_s3_address(address, error)
