"""Overlays in S3 that differ from the uploaded ones."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

import botocore.client
import botocore.session
import numpy as np
import pytest
from anyio import to_thread
from botocore.exceptions import ClientError

import async_maps as am
from async_maps.filesystems.locators import bitmap_mask_fields
from async_maps.filesystems.objects import Objects
from tests.support.commands import invoke, start
from tests.support.installed import kolena_client
from tests.support.leftovers import leaves_nothing
from tests.support.maps import random_map
from tests.support.overlays import BROKEN, NAMES, break_in_s3, found, recorded, upload_overlays
from tests.support.s3 import s3_client, upload
from tests.support.s3_proxy import counting

if TYPE_CHECKING:
    from async_maps.demo.seaweed import S3Server

pytestmark = pytest.mark.usefixtures(leaves_nothing.__name__)

SETTINGS = am.Settings(workers=0)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operations of botocore's clients from now on."""
    operations: list[str] = []
    original = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]  # the one place they all pass

    def counted(self: Any, operation: str, parameters: Any) -> Any:
        operations.append(operation)
        return original(self, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", counted)
    return operations


async def test_differences_in_s3_are_found(bucket: str, maps: Path, manifest: Path, calls: list[str]) -> None:
    await to_thread.run_sync(upload_overlays, maps, f"s3://{bucket}/pre fix", manifest)
    clean = await am.averify_locators(manifest, settings=SETTINGS, deep=True)
    assert clean.is_clean
    assert (clean.locators, clean.right, clean.listed, clean.read, clean.doing) == (8, 8, 8, 8, "")

    break_in_s3(bucket, "pre fix/")
    before = manifest.read_bytes()
    calls.clear()
    shallow = await am.averify_locators(manifest, settings=SETTINGS)
    # The listing lacks one object.
    assert calls == ["ListObjectsV2", "HeadObject"]
    assert found(shallow) == BROKEN
    assert (shallow.locators, shallow.right, shallow.listed, shallow.read) == (8, 4, 9, 0)
    repair, newer = shallow.advice
    assert repair.endswith(f": async-maps verify {manifest} --repair")
    assert newer.startswith("1 foreign object is newer than the start of the last run with this manifest, ")
    named = {difference.name: difference for difference in shallow.first}
    assert str(named["a/missing"]).startswith(f"missing: s3://{bucket}/pre fix/a/missing.png: expected 1,7")
    assert named["a/missing"].found == "nothing"
    assert named["a/truncated"].found == "700 bytes"
    assert named[""].expected == "no object"

    deep = await am.averify_locators(manifest, settings=SETTINGS, deep=True)
    assert found(deep) == BROKEN | {"content-type": {"mistyped"}}
    # An object that the listing shows to differ is not read.
    assert (deep.right, deep.read) == (3, 4)
    assert manifest.read_bytes() == before


async def test_a_listing_takes_one_request_for_each_thousand_objects(
    bucket: str, manifest: Path, tmp_path: Path, calls: list[str]
) -> None:
    pixel = np.zeros((1, 1), np.float32)
    maps = [(f"{i % 7}/{i}", pixel) for i in range(1100)]
    await to_thread.run_sync(lambda: am.run(maps, f"s3://{bucket}/p", settings=SETTINGS, manifest=manifest))
    calls.clear()
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (verification.right, verification.listed, verification.differences) == (1100, 1100, {})
    assert calls == ["ListObjectsV2"] * 2
    # A table with few locators does not list the whole prefix.
    table = tmp_path / "few.csv"
    table.write_text(f"locator\ns3://{bucket}/p/0/0.png\ns3://{bucket}/p/6/none.png\n")
    calls.clear()
    verification = await am.averify_locators(table, settings=SETTINGS)
    assert found(verification) == {"missing": {"none"}}
    assert len(calls) <= 4


# Tables ------------------------------------------------------------------------------------------------------------


def write_as_kolena(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows with masks and lists of masks as Kolena's own client does."""
    pd = pytest.importorskip("pandas")
    io = kolena_client("kolena.io")
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        io.dataframe_to_csv(frame, path, index=False)
    elif path.suffix == ".parquet":
        io.dataframe_to_parquet(frame, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


async def test_tables_of_ours_and_kolenas_are_verified(bucket: str, maps: Path, manifest: Path, tmp_path: Path) -> None:
    await to_thread.run_sync(upload_overlays, maps, f"s3://{bucket}/pre fix", manifest)
    masks = [bitmap_mask_fields(f"s3://{bucket}/pre fix/{name}.png", label="cam") for name in NAMES]
    rows = [{"id": 1, "score": 0.5, "cam": masks[0], "more": masks[1:4]}, {"id": 2, "cam": masks[4], "more": masks[5:]}]
    known = {"missing": {"missing"}, "content-type": {"mistyped"}}
    cases = []
    for suffix in (".csv", ".parquet", ".jsonl"):
        am.export_manifest(manifest, tmp_path / f"ours{suffix}")
        cases.append((tmp_path / f"ours{suffix}", known | {kind: BROKEN[kind] for kind in ("size", "etag")}))
        write_as_kolena(tmp_path / f"kolenas{suffix}", rows)
        # Kolena's table only says where the overlays are and that they are PNGs.
        cases.append((tmp_path / f"kolenas{suffix}", known | {"undecodable": {"truncated", "flipped"}}))
    for table, _ in cases[:2]:
        clean = await am.averify_locators(table, settings=SETTINGS, deep=True)
        assert (clean.first, clean.right, clean.read) == ([], 8, 8)
        assert clean.folders == [f"s3://{bucket}/pre fix/"]
    break_in_s3(bucket, "pre fix/")
    for table, expected in cases:
        broken = await am.averify_locators(table, settings=SETTINGS, deep=True)
        assert found(broken) == expected
        assert broken.first[0].name in {"line 1", "line 2", "row 1"}


async def test_locators_in_several_buckets_and_folders_are_verified(
    bucket: str, tmp_path: Path, maps: Path, manifest: Path
) -> None:
    other = f"{bucket}-other"
    with s3_client() as client:
        client.create_bucket(Bucket=other)
        client.put_object(Bucket=other, Key="x/1.png", Body=b"1")
        client.put_object(Bucket=bucket, Key="x/1.png", Body=b"1")
    await to_thread.run_sync(upload_overlays, maps, tmp_path / "out", manifest)
    there = [f"s3://{bucket}/x/1.png", f"s3://{other}/x/1.png", *((tmp_path / f"out/{n}.png").as_uri() for n in "ef")]
    gone = [f"s3://{bucket}/y/2.png", f"s3://{other}/x/2.png", (tmp_path / "out/g.png").as_uri()]
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["locator", *there, *gone, "ftp://bucket/x.png"]), encoding="utf-8")
    verification = await am.averify_locators(table, settings=SETTINGS)
    assert {difference.locator for difference in verification.first if difference.kind == "missing"} == set(gone)
    assert verification.differences == {"missing": 3, "unknown": 1}
    assert (verification.locators, verification.right) == (8, 4)
    assert sorted(verification.folders) == [f"s3://{other}/x/", f"s3://{bucket}/"]


async def test_objects_that_cannot_be_listed_are_checked_singly(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with s3_client() as client:
        client.put_object(Bucket=bucket, Key="x/there.png", Body=b"1")
    original = botocore.client.BaseClient._make_api_call  # type: ignore[attr-defined]  # as above

    def refused(self: Any, operation: str, parameters: Any) -> Any:
        if operation == "ListObjectsV2" or parameters["Key"].endswith("secret.png"):
            answer: Any = {
                "Error": {"Code": "AccessDenied", "Message": "no"},
                "ResponseMetadata": {"HTTPStatusCode": 403},
            }
            raise ClientError(answer, operation)
        return original(self, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refused)
    table = tmp_path / "table.csv"
    table.write_text("locator\n" + "".join(f"s3://{bucket}/x/{name}.png\n" for name in ("there", "gone", "secret")))
    verification = await am.averify_locators(table, settings=SETTINGS)
    assert found(verification) == {"missing": {"gone"}, "unreadable": {"secret"}}
    assert (verification.right, verification.folders) == (1, [])


def test_a_table_in_s3_is_verified_by_the_command(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    with s3_client() as client:
        client.put_object(Bucket=bucket, Key="x/1.png", Body=b"1")
        client.put_object(Bucket=bucket, Key="t.csv", Body=f"locator\ns3://{bucket}/x/1.png\n".encode())
    assert invoke("verify", f"s3://{bucket}/t.csv", "--progress", "none") == 0
    assert capsys.readouterr().out.startswith("1 of 1 locator is right")


# The store ---------------------------------------------------------------------------------------------------------


async def test_a_manifest_of_another_endpoint_is_refused(manifest: Path, s3: S3Server) -> None:
    recorded(manifest, "s3://bucket/prefix at http://127.0.0.1:9")
    with pytest.raises(am.ManifestError, match=rf"at http://127.0.0.1:9, but the .* at {s3.endpoint_url}, where s3:"):
        await am.averify_locators(manifest, settings=SETTINGS)


async def test_objects_that_another_manifest_replaced_are_found_by_their_etags(
    bucket: str, maps: Path, manifest: Path, tmp_path: Path
) -> None:
    place = f"s3://{bucket}/shared"
    await to_thread.run_sync(upload_overlays, maps, place, manifest)
    other = tmp_path / "other.sqlite"
    await to_thread.run_sync(lambda: upload_overlays(maps, place, other, colormap="viridis"))
    verification = await am.averify_locators(manifest, settings=SETTINGS)
    assert (verification.differences, verification.read) == ({"etag": 8}, 0)
    assert (await am.averify_locators(other, settings=SETTINGS)).is_clean


async def test_no_overlay_of_a_run_is_called_foreign_or_different_while_it_writes(
    bucket: str, maps: Path, manifest: Path
) -> None:
    place = f"s3://{bucket}/p"
    await to_thread.run_sync(upload_overlays, maps, place, manifest)
    await to_thread.run_sync(upload, bucket, {"p/old.png": b"foreign"})
    np.save(maps / "stack.npy", np.random.default_rng(1).random((4000, 6, 6)))
    # Every overlay is replaced, and there are new ones.
    run = ("run", maps, place, "--manifest", manifest, "--overwrite", "--colormap", "viridis", "--workers", 1)
    running = start(*run, "--progress", "none")
    beside = 0
    try:
        while running.poll() is None:
            verification = await am.averify_locators(manifest, settings=SETTINGS)
            assert verification.differences.keys() <= {"foreign"}
            if verification.running is not None:
                assert found(verification).get("foreign", {"old"}) == {"old"}
                beside += 1
    finally:
        running.kill()
        running.communicate()
    assert running.returncode == 0
    assert beside
    after = await am.averify_locators(manifest, settings=SETTINGS)
    assert (found(after), after.right, after.unsettled) == ({"foreign": {"old"}}, 4008, 0)


async def test_the_clock_of_the_store_is_known_from_its_listing(
    bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(s3, monkeypatch) as proxy, Objects() as objects:
        folder = f"s3://{bucket}/"
        assert (list(objects.below(folder)), objects.clock_offset_s(folder)) == ([], 0)
        proxy.headers["Date"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        list(objects.below(folder))
        expected = datetime(2026, 1, 1, tzinfo=UTC).timestamp() - time.time()
        assert objects.clock_offset_s(folder) == pytest.approx(expected, abs=300)
        proxy.headers["Date"] = "yesterday"
        list(objects.below(folder))


@pytest.mark.parametrize(("name", "spelling"), [("a b", "a%20b"), ("caf\u00e9", "cafe\u0301"), ("IMG", "img")])
async def test_an_object_that_a_listing_spells_otherwise_is_right(
    name: str, spelling: str, bucket: str, manifest: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(s3, monkeypatch) as proxy:
        maps = [(each, random_map(1)) for each in (name, "other")]
        await to_thread.run_sync(lambda: am.run(maps, f"s3://{bucket}/p", settings=SETTINGS, manifest=manifest))

        def spell(listing: bytes) -> bytes:
            for one, other in ((name, spelling), (quote(name), quote(spelling)), (quote_plus(name), spelling)):
                if (key := f"p/{one}.png".encode()) in listing:
                    return listing.replace(key, f"p/{other}.png".encode())
            raise AssertionError(listing)

        proxy.spell = spell
        verification = await am.averify_locators(manifest, settings=SETTINGS)
        assert (verification.right, verification.first) == (2, [])


async def test_a_missing_bucket_is_an_error(manifest: Path, s3: S3Server) -> None:
    recorded(manifest, f"s3://no-such-bucket/prefix at {s3.endpoint_url}")
    with pytest.raises(am.StoreError, match=r"^s3://no-such-bucket/prefix/: refused .*bucket does not exist"):
        await am.averify_locators(manifest, settings=SETTINGS)


async def test_a_truncated_response_is_requested_again(
    bucket: str, manifest: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counting(s3, monkeypatch) as proxy:
        maps = [(name, random_map(1)) for name in "ab"]
        await to_thread.run_sync(lambda: am.run(maps, f"s3://{bucket}", settings=SETTINGS, manifest=manifest))
        proxy.break_off = 2
        verification = await am.averify_locators(manifest, settings=SETTINGS, deep=True)
        assert (verification.right, verification.first) == (2, [])
        assert len(proxy.gets()) == 4
