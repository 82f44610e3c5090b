"""Headers that the settings ask for are in every request that needs them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import numpy as np

import async_maps as am
from async_maps.filesystems.presign import presigning
from tests.support.maps import random_map
from tests.support.odd_server import OddServer, odd_server

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["odd_server"]

PNGS = {
    "acl": "bucket-owner-full-control",
    "bucket_key": True,
    "kms_key_id": "arn:aws:kms:us-east-1:123456789012:key/x",
    "request_payer": "requester",
    "server_side_encryption": "aws:kms",
    "tagging": {"team & all": "é=1", "project": "maps"},
}


async def test_acl_tags_and_bucket_key_are_in_the_puts_of_the_sdk_and_in_direct_ones(odd_server: OddServer) -> None:
    settings = am.Settings(workers=0, s3=PNGS)
    async with am.Pipeline("s3://bucket/p", settings=settings) as pipeline:
        for name in ("a", "b"):
            await pipeline.put(name, random_map(1))
    puts = [asked.headers for asked in odd_server.asked if asked.method == "PUT"]
    assert ["amz-sdk-invocation-id" in headers for headers in puts] == [True, False]
    for headers in puts:
        assert headers["x-amz-acl"] == "bucket-owner-full-control"
        assert headers["x-amz-server-side-encryption-bucket-key-enabled"] == "true"
        assert headers["x-amz-request-payer"] == "requester"
        assert parse_qs(headers["x-amz-tagging"]) == {"team & all": ["é=1"], "project": ["maps"]}


def test_every_request_says_who_pays(odd_server: OddServer, tmp_path: Path) -> None:
    settings = am.Settings(workers=0, s3={"request_payer": "requester"})
    np.save(tmp_path / "a.npy", random_map(1))
    odd_server.objects["/bucket/maps/a.npy"] = (tmp_path / "a.npy").read_bytes(), {"ETag": '"1"'}
    manifest = tmp_path / "m.sqlite"
    report = am.run("s3://bucket/maps/", "s3://bucket/p", settings=settings, manifest=manifest)
    assert report.uploaded == 1
    assert am.verify_locators(manifest, settings=settings, deep=True).exit_code == 0
    odd_server.objects["/bucket/maps/b.npy"] = odd_server.objects.pop("/bucket/maps/a.npy")
    am.run("s3://bucket/maps/", "s3://bucket/p", settings=settings, manifest=manifest, prune="objects", prune_all=True)
    assert set(odd_server.objects) == {"/bucket/maps/b.npy", "/bucket/p/b.png"}
    assert {asked.method for asked in odd_server.asked} == {"PUT", "GET", "HEAD", "POST"}
    assert all(asked.headers.get("x-amz-request-payer") == "requester" for asked in odd_server.asked)


def test_a_presigned_url_says_who_pays(odd_server: OddServer, tmp_path: Path) -> None:
    with presigning(1, "s3://bucket/p", "requester") as presigned:
        query = parse_qs(urlsplit(presigned("s3://bucket/p/a.png")).query)
    assert query["x-amz-request-payer"] == ["requester"]
    assert query["X-Amz-SignedHeaders"] == ["host"]
    settings = am.Settings(workers=0, s3={"request_payer": "requester"})
    am.run([("a", random_map(1))], "s3://bucket/p", settings=settings, manifest=tmp_path / "m.sqlite")
    am.export_manifest(tmp_path / "m.sqlite", tmp_path / "m.jsonl", presign_hours=1)
    url = json.loads((tmp_path / "m.jsonl").read_text())["url"]
    assert "x-amz-request-payer=requester" in url
