"""Overlays in a bucket or a folder, and every difference from their manifest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import async_maps as am
from async_maps.manifest.manifest import Manifest
from tests.support.manifests import make_map, receipt_for
from tests.support.maps import random_map
from tests.support.s3 import s3_client

NAMES = ("a/missing", "a/truncated", "b/replaced", "b/flipped", "c/mistyped", "d é", "e", "f")


def upload_overlays(maps: Path, destination: object, manifest: Path, **settings: Any) -> None:
    """Save maps with the names in NAMES and upload their overlays."""
    for seed, name in enumerate(NAMES):
        path = maps / f"{name}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, random_map(seed))
    report = am.run(maps, str(destination), settings=am.Settings(workers=0, **settings), manifest=manifest)
    assert (report.uploaded, report.failed) == (len(NAMES), 0)


def found(verification: am.Verification) -> dict[str, set[str]]:
    """Return the ends of the differing locators by kind of difference."""
    kinds: dict[str, set[str]] = {}
    for difference in verification.first:
        kinds.setdefault(difference.kind, set()).add(difference.locator.rpartition("/")[2].removesuffix(".png"))
    assert {kind: len(locators) for kind, locators in kinds.items()} == verification.differences
    return kinds


def flipped(data: bytes) -> bytes:
    """Return the data with one changed byte in the middle."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :]


def break_in_s3(bucket: str, prefix: str) -> None:
    """Change objects below a prefix (with its slash) in every way, and add objects below it and beside it."""
    with s3_client() as client:

        def put(key: str, data: bytes, content_type: str = "image/png") -> None:
            client.put_object(Bucket=bucket, Key=key, Body=data, ContentType=content_type)

        def data(name: str) -> bytes:
            body: bytes = client.get_object(Bucket=bucket, Key=f"{prefix}{name}.png")["Body"].read()
            return body

        client.delete_object(Bucket=bucket, Key=f"{prefix}a/missing.png")
        put(f"{prefix}a/truncated.png", data("a/truncated")[:700])
        put(f"{prefix}b/replaced.png", data("e"))
        put(f"{prefix}b/flipped.png", flipped(data("b/flipped")))
        put(f"{prefix}c/mistyped.png", data("c/mistyped"), "text/plain")
        put(f"{prefix}a/foreign.png", data("f"))
        put(f"{prefix}report.json", b"{}", "application/json")
        if prefix:
            put(f"{prefix[:-1]}-of-somebody-else/g.png", data("f"))


BROKEN = {"missing": {"missing"}, "size": {"truncated"}, "etag": {"flipped", "replaced"}, "foreign": {"foreign"}}
"""The differences that a listing shows after :func:`break_in_s3`."""


def recorded(manifest: Path, identity: str) -> None:
    """Write a manifest of a run to a store with this identity."""
    locator = f"{identity.partition(' at ')[0]}/a.png"
    with Manifest(manifest) as opened:
        opened.begin(identity)
        opened.write([replace(receipt_for(make_map("a")), locator=locator)], "settings")
