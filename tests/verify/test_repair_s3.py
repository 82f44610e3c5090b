"""Overlays in S3 are repaired."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import botocore.client
import numpy as np
import pytest
from anyio import to_thread
from botocore.exceptions import ClientError

import async_maps as am
from async_maps.manifest.manifest import Manifest
from tests.support.commands import invoke
from tests.support.leftovers import leaves_nothing
from tests.support.manifests import rows
from tests.support.maps import random_map
from tests.support.overlays import break_in_s3, upload_overlays
from tests.support.s3 import objects, s3_client

if TYPE_CHECKING:
    from pathlib import Path

    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)

REPAIRED = {"a/missing", "a/truncated", "b/replaced", "b/flipped", "c/mistyped"}


def test_only_broken_overlays_in_s3_are_uploaded(
    bucket: str,
    maps: Path,
    manifest: Path,
    s3: S3Server,
    puts: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    # A source relative to the working folder, and a range over the whole set.
    upload_overlays(
        maps.relative_to(tmp_path),
        f"s3://{bucket}/pre fix",
        manifest,
        range="dataset",
        s3={"cache_control": "no-cache"},
    )
    before = asyncio.run(objects(bucket))
    kept = rows(manifest, "name, bytes, etag, crc32, settings", "1 ORDER BY name")
    with Manifest(manifest, read_only=True) as opened:
        spanned = opened.value_range()
    monkeypatch.chdir("/")
    break_in_s3(bucket, "pre fix/")
    puts.clear()
    command = ("verify", manifest, "--deep", "--workers", 0, "--progress", "none", "--repair")

    assert invoke(*command, "--report", tmp_path / "report.json") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert sorted(report["first_repaired"]) == sorted(f"s3://{bucket}/pre fix/{name}.png" for name in REPAIRED)
    assert sorted(puts) == sorted(f"pre fix/{name}.png" for name in REPAIRED)
    out, error = capsys.readouterr()
    assert "5 repaired, 0 foreign deleted\ndifferent: 1 foreign\n" in out
    assert out.endswith("so another run or program has stored it. Give each manifest its own prefix\n")
    (said,) = error.splitlines()
    assert said.startswith(f"async-maps: foreign: s3://{bucket}/pre fix/a/foreign.png: 1,7")
    after = asyncio.run(objects(bucket))
    beside = {"pre fix/a/foreign.png", "pre fix/report.json", "pre fix-of-somebody-else/g.png"}
    assert set(after) == set(before) | beside
    assert {key: after[key][0] for key in before} == {key: data for key, (data, _) in before.items()}
    assert rows(manifest, "name, bytes, etag, crc32, settings", "status = 'done' ORDER BY name") == kept
    with s3_client() as client:
        head = client.head_object(Bucket=bucket, Key="pre fix/c/mistyped.png")
    assert (head["ContentType"], head["CacheControl"]) == ("image/png", "no-cache")
    with Manifest(manifest, read_only=True) as opened:
        assert opened.value_range() == spanned
        (run,) = opened.runs()
        assert run.source == str(maps)
    assert not any(secret.encode() in manifest.read_bytes() for secret in (s3.secret_key, s3.access_key))

    puts.clear()
    assert invoke(*command, "--delete-foreign") == 0
    assert puts == []
    assert "0 repaired, 1 foreign deleted" in capsys.readouterr().out
    assert set(asyncio.run(objects(bucket))) == set(before) | beside - {"pre fix/a/foreign.png"}
    assert invoke("verify", manifest, "--deep", "--workers", 0) == 0


async def test_overlays_are_repaired_if_the_store_cannot_delete(
    bucket: str, maps: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await to_thread.run_sync(upload_overlays, maps, f"s3://{bucket}", manifest)
    with s3_client() as client:
        client.copy_object(Bucket=bucket, Key="g.png", CopySource=f"{bucket}/e.png")
        client.delete_object(Bucket=bucket, Key="e.png")
    original = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]  # the one place they all pass

    def refused(self: Any, operation: str, parameters: Any) -> Any:
        if operation == "DeleteObjects":
            answer: Any = {"Error": {"Code": "NotImplemented"}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(answer, operation)
        return original(self, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refused)
    verification = await am.arepair_overlays(manifest, settings=SETTINGS, delete_foreign=True)
    assert (verification.repaired, verification.deleted, verification.differences) == (1, 0, {"foreign": 1})
    (said,) = verification.advice
    assert said.startswith(f"not deleted: s3://{bucket}/g.png: s3://{bucket}: refused with NotImplemented")


async def test_each_overlay_is_repaired_with_the_headers_of_its_run(
    bucket: str, tmp_path: Path, manifest: Path
) -> None:
    """The runs have equal bytes and different headers."""
    for name in "abc":
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / f"{name}.npy", random_map(1))
        settings = am.Settings(workers=0, s3=am.S3Settings(cache_control=f"max-age={ord(name)}"))
        await to_thread.run_sync(
            lambda: am.run(tmp_path / name, f"s3://{bucket}", settings=settings, manifest=manifest)  # noqa: B023
        )
    with s3_client() as client:
        for name in "abc":
            client.delete_object(Bucket=bucket, Key=f"{name}.png")
        for _ in range(2):
            assert (await am.arepair_overlays(manifest, settings=SETTINGS)).is_clean
            heads = {name: client.head_object(Bucket=bucket, Key=f"{name}.png") for name in "abc"}
            assert {name: head["CacheControl"] for name, head in heads.items()} == {
                name: f"max-age={ord(name)}" for name in "abc"
            }
            client.delete_object(Bucket=bucket, Key="b.png")
