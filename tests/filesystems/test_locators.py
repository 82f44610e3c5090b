"""Addresses in S3 are parsed into bucket and key."""

from __future__ import annotations

import re

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
def test_an_address_has_a_bucket_and_a_key(address: str, bucket: str, key: str) -> None:
    found = parse_s3_address(address)
    assert found == S3Address(bucket, key)
    assert parse_s3_address(str(found)) == found


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
            parse_s3_address(address, error)


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
        "bucket/key",
        "gs://bucket/key",
        "",
    ],
)
def test_an_address_without_a_bucket_name_is_refused(address: str) -> None:
    for error in (SourceError, SettingsError):
        with pytest.raises(error, match="is not a valid bucket name; expected s3://bucket/prefix"):
            parse_s3_address(address, error)
