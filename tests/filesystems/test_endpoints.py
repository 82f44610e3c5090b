"""One endpoint has one spelling, and two servers have two."""

from __future__ import annotations

import pytest

from async_maps.filesystems.endpoints import Identity, bucket_identity, check_endpoint, normalize_endpoint

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("endpoint", "normal"),
    [
        ("http://minio:9000/", "http://minio:9000"),
        ("http://minio:9000//", "http://minio:9000"),
        ("HTTP://MinIO.Example.COM:9000", "http://minio.example.com:9000"),
        ("http://minio:80", "http://minio"),
        ("https://minio:443/", "https://minio"),
        ("https://minio:80", "https://minio:80"),
        ("http://minio:443", "http://minio:443"),
        ("https://minio:09000", "https://minio:9000"),
        ("https://minio:", "https://minio"),
        ("http://minio.local.:9000", "http://minio.local:9000"),
        ("https://gateway/S3/", "https://gateway/S3"),
        ("https://gateway/./S3//a/?x=1#y", "https://gateway/S3/a"),
        ("https://user:secret@minio:443", "https://minio"),
        ("http://[::1]:80", "http://[::1]"),
        ("http://[0:0:0:0:0:0:0:1]:9000/", "http://[::1]:9000"),
        (" http://minio ", "http://minio"),
        ("http://localhost:9000", "http://localhost:9000"),
        ("http://minio:port", "http://minio:port"),
        ("minio:9000", "minio:9000"),
        ("", ""),
    ],
)
def test_one_endpoint_has_one_spelling(endpoint: str, normal: str) -> None:
    assert normalize_endpoint(endpoint) == normal
    assert normalize_endpoint(normal) == normal


@pytest.mark.parametrize(
    ("endpoint", "identity"),
    [
        ("https://s3.amazonaws.com", "s3://b/p"),
        ("https://s3.eu-central-1.amazonaws.com/", "s3://b/p"),
        ("https://S3.dualstack.us-west-2.amazonaws.com:443", "s3://b/p"),
        ("https://bucket.vpce-1a2b.s3.us-east-1.vpce.amazonaws.com", "s3://b/p"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "s3://b/p at https://amazonaws.com.cn"),
        ("https://s3.us-gov-west-1.amazonaws.com", "s3://b/p at https://us-gov.amazonaws.com"),
        ("https://amazonaws.com.example.com/", "s3://b/p at https://amazonaws.com.example.com"),
        ("http://localhost:9000/amazonaws.com", "s3://b/p at http://localhost:9000/amazonaws.com"),
        ("http://notamazonaws.com", "s3://b/p at http://notamazonaws.com"),
    ],
)
def test_all_addresses_of_aws_are_one_server(endpoint: str, identity: str) -> None:
    assert bucket_identity("s3://b/p", endpoint) == identity


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("s3://b/p at http://x:9", Identity("s3://b/p", "http://x:9")),
        ("s3://b/a at http://x at http://y", Identity("s3://b/a at http://x", "http://y")),
        ("s3://b/at night", Identity("s3://b/at night", "")),
        ("file:///a%20at%20b", Identity("file:///a%20at%20b", "")),
        ("store://Mine at https://x", Identity("store://Mine at https://x", "")),
    ],
)
def test_an_identity_is_split_into_destination_and_endpoint(text: str, parts: Identity) -> None:
    assert Identity.parse(text) == parts
    assert str(parts) == text


UNUSABLE = ["http://user:s3cr3t@127.0.0.1:1", "http://user@minio:1", "http://127.1:1", "http://127.0.0.256:1"]


@pytest.mark.parametrize("endpoint", UNUSABLE)
def test_an_endpoint_that_can_never_answer_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="the endpoint") as caught:
        check_endpoint(endpoint)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9000", "http://[::1]:9000", "https://minio/path", "https://1.2.3.4.example.com"]
)
def test_other_endpoints_are_not_refused(endpoint: str) -> None:
    check_endpoint(endpoint)
